r"""Grades a multiple-choice answer: one letter.

The default rule (`grade`) reads the last <answer>...</answer>. Without one it reads the last
\boxed{...}, then the text after the last "answer is" or "Answer:", then a last line that is only a
letter. This part must name exactly one letter: "A", "(A)", "A. text" and "**A**" do, "A or B" does
not. If the length limit cut the completion off, only a tag or box counts.

`grade_reference` does what verl/utils/reward_score/feedback/mcq.py of both papers' code does. It
compares the letter with the stripped text from the last <answer> to the next </answer>, or with
the whole stripped text.
"""

from __future__ import annotations

import re

from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.records import Grade

_MARKUP = re.compile(r"\\(?:text|textbf|mathbf|mathrm|boldsymbol)\s*(?=\{)")
_ALONE = re.compile(r"[\W_]*(?:(?i:the|correct|option|choice|answer|is)\b[\W_]*)*([A-Za-z])[\W_]*")
_LABEL = re.compile(r"[\W_]*(?:(?i:option|choice)\b[\W_]*)?([A-Z])[*_]*\s*[.):](?=\W)(?s:.*)")
_SAID = re.compile(
    r"\b(?i:answer)(?:\s{1,9}(?i:is|would\sbe))?[\s:*_($\"'\[{\\]{1,9}"
    r"(?:(?i:option|choice)\s{1,9})?([A-Z])(?![\w'])(?!\s{0,9}(?:,|/|\b(?:or|and)\b)\s{0,9}\(?[A-Z]\b)"
)


def letter(region: str) -> str | None:
    """Returns the one letter that an answer region names, or None."""
    region = _MARKUP.sub("", region[:2000]).strip()
    match = _ALONE.fullmatch(region) or _LABEL.fullmatch(region)
    return match.group(1).upper() if match else None


def predicted(text: str, *, truncated: bool) -> str | None:
    """Returns the letter that a completion chooses, or None."""
    stated = stated_answer(text)
    if stated is not None:
        return letter(stated)
    if truncated:
        return None
    answer = _MARKUP.sub("", after_thinking(text)[-2000:])
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
    formatted = re.search(r"<answer>\s*[A-Z]\s*</answer>\s*\Z", text[-2000:]) is not None
    return Grade(
        reward=float(correct),
        correct=correct,
        details={"prediction": prediction, "incorrect_format": formatted, "truncated": truncated},
    )
