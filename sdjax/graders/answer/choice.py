r"""Grades a multiple-choice answer: one letter.

The default rule (`grade`) reads the last <answer>...</answer>. Without one it reads the last
\boxed{...}, then the text after the last "answer is" or "Answer:", then a last line that is only a
letter. This part must name exactly one letter: "A", "(A)", "A. text", "A (text)" and "**A**" do,
"A or B" does not. If the length limit cut the completion off, only a tag or box counts.

`grade_reference` does what verl/utils/reward_score/feedback/mcq.py of both papers' code does. It
compares the letter with the stripped text from the last <answer> to the next </answer>, or with
the whole stripped text.
"""

from __future__ import annotations

import re

from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.records import Grade

_MARKUP = re.compile(
    r"\\(?:text|textbf|textrm|mathbf|mathrm|mbox|boldsymbol)\s*(?=\{)|\$|</?(?:b|i|strong|em)>"
)
# Words that may stand before the letter.
_WORDS = (
    "so|thus|therefore|hence|the|my|i|we|correct|right|best|final|most|likely|option|choice|answer|"
    "is|it|it's|must|would|should|be|think|believe|choose|pick|select|say|i'd|i'll|i'm|i've|am|"
    "(?:sure|certain|confident|convinced)(?:\\sthat)?|(?:go|going)\\s(?:with|for)|has\\sto\\sbe|"
    "guess|probably|definitely|clearly|certainly|surely|chose|chosen|selected|picked|letter|"
    "quite|pretty|very|fairly|that's|well|ok|okay"
)
_LEAD = rf"[\W_]{{0,9}}(?:(?i:{_WORDS})\b[\W_]{{1,9}}){{0,9}}"
_NEXT = (
    r"[\W_]{0,9}\b(?:or|and)\b[\W_]{0,9}(?:option\s)?[A-Z]\b"
    r"|[)\]*_ ]{0,9}[,;/&][\s(]{0,9}(?!I\s[a-z])[A-Z](?![\w'])"
)
_ALONE = re.compile(rf"{_LEAD}([A-Za-z])[\W_]*")
_VERBS = (
    "is|was|are|were|can|could|may|might|would|does|seems|looks|cannot|(?:is|was|can|does)n't|can't"
)
_GOOD = (
    r"(?:definitely\s|clearly\s|probably\s)?(?:the\s|my\s)?(?:final\s)?"
    r"(?:correct|right|best|answer|choice|one)\b"
)
# "B. text", "B) text", "(B) text", "B (text)", "B - text", "B, because", "B is correct".
_LABEL = re.compile(
    rf"{_LEAD}([A-Z]|(?<![^\W_])[a-hj](?=[.)]))(?![\w'])(?!{_NEXT})[*_\"'}}\]]*(?:\s*[.):;](?=\W)|"
    r"\s*\n|\s+[\d(\[{\u2014\u2013|=-]|,\s|\s+(?:because|since|as|is\s"
    rf"{_GOOD}|it\sis\b|I\s(?:think|guess|believe|suppose)\b))"
    r"(?s:.*)"
)
# "B (text) or C (text)".
_SECOND_BRACKET = re.compile(r"(?:\b(?:or|and)\b|[,;/\n])[\s(*]{0,9}[A-Z]\s{0,3}[(\[{]")
# What follows a letter that is ruled out, doubted or taken back.
_BAD = "not|wrong|incorrect|false|out|ruled|excluded|eliminated|impossible|unlikely"
_DENIED = (
    r"[)\]*_ ]{0,9}\?"
    rf"|[*_]{{0,3}}\s{{1,9}}(?i:{_VERBS})\b(?!\s{_GOOD})"
    rf"|[)\]*_]{{1,4}}\s{{1,9}}(?i:is|was|seems|looks)\s(?i:{_BAD})\b"
    r"|[)\]*_\s,;.:\u2014\u2013-]{0,9}\b(?i:no|wait|actually|sorry|correction|scratch\sthat)"
    r"(?:[,.;:!\u2014\u2013-]|\s(?i:wait|actually|no)\b|\s\(?[A-H]\b)"
)
_SECOND_LABEL = re.compile(
    r"(?:\b(?:or|and)\b|[,;/\n])[\s(*]{0,9}[A-Z][.):*]\s|\n[\s(*]{0,9}[A-Z][.)*]{0,3}\s{0,9}(?:\n|$)"
)
# "A" and "I" are words too, if a word follows that does not give a reason.
_REASON = "because|since|as|is|for|by|due|given|with|which|where|and|or"
_LETTER = rf"([B-HJ-Z]|[AI](?!\s{{1,9}}(?!(?:{_REASON})\b)[a-z]))(?![\w'])"
_SAID = re.compile(
    r"\b(?i:answer|(?:correct|right|best)\s(?:choice|option))(?:\s{1,9}(?i:is|would\sbe|must\sbe|should\sbe))?"
    rf"[\s:*_($\"'\[{{\\=\u2014\u2013-]{{1,9}}(?:(?i:{_WORDS})[\s:*(]{{1,9}}){{0,6}}{_LETTER}(?!{_NEXT})(?!{_DENIED})"
)


def letter(region: str) -> str | None:
    """Returns the one letter that an answer region names, or None."""
    region = _MARKUP.sub("", region[:2000]).replace("\u2019", "'").strip()
    match = _ALONE.fullmatch(region)
    if match is None:
        match = _LABEL.fullmatch(region)
        if match is None or _SECOND_LABEL.search(region, match.end(1)):
            return None
        after = region[match.end(1) :]
        if re.match(_DENIED, after) or (
            after.lstrip()[:1] in "([{" and _SECOND_BRACKET.search(after)
        ):
            return None
    return match.group(1).upper()


def predicted(text: str, *, truncated: bool) -> str | None:
    """Returns the letter that a completion chooses, or None."""
    stated = stated_answer(text)
    if stated is not None:
        return letter(stated)
    if truncated:
        return None
    answer = _MARKUP.sub("", after_thinking(text)[-2000:]).replace("\u2019", "'")
    said = _SAID.findall(answer)
    return said[-1] if said else letter(answer.strip().rpartition("\n")[2])


def grade(text: str, answer: str, *, truncated: bool = False) -> Grade:
    """Returns reward 1 if the completion chooses the letter `answer`, else 0."""
    prediction = predicted(text, truncated=truncated)
    correct = prediction is not None and prediction == answer.strip().upper()
    feedback = ""
    if prediction is None:
        feedback = (
            "Your response was cut off before it chose an option."
            if truncated
            else "Your response does not choose exactly one option."
        )
    return Grade(
        reward=float(correct),
        correct=correct,
        feedback=feedback,
        details={"prediction": prediction, "truncated": truncated},
    )


def grade_reference(text: str, answer: str, *, truncated: bool = False) -> Grade:
    """Returns the reward of the papers' code, with its inverted `incorrect_format`."""
    prediction = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    correct = prediction == answer
    last = text[text.rfind("<answer>") :]
    formatted = re.search(r"<answer>\s*[A-D]\s*</answer>$", last) is not None
    return Grade(
        reward=float(correct),
        correct=correct,
        details={"prediction": prediction, "incorrect_format": formatted, "truncated": truncated},
    )
