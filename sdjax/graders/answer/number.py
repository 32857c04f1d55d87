r"""Grades an answer that is one number.

The rule reads only the text after the thinking. The answer is the number in the last
<answer>...</answer>, else in the last \boxed{...}, else the last number of the text. A box or tag
must hold exactly one number after its last "=", so that a list of candidates earns nothing. If the
length limit cut the completion off, only a box or tag counts, because the last number of such a
text is accidental.
"""

from __future__ import annotations

import re

from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.records import Grade

# 1,234 and 1{,}234 are one number; "17, 92" and "17,92" are two.
_NUMBER = re.compile(r"\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+", re.ASCII)
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2012": "-"})


def canonical(text: str) -> str | None:
    """Returns a decimal number in its shortest spelling ("-0012.50" -> "-12.5"), or None."""
    text = text.translate(_MINUS).strip().removeprefix("+")
    sign = text.startswith("-")
    if not _NUMBER.fullmatch(text, int(sign)):
        return None
    digits = re.sub(r"[,{}-]", "", text)
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if sign and number != "0" else number


def numbers(text: str) -> list[str]:
    """Returns the numbers in a text, in order, in their shortest spelling.

    A minus sign belongs to a number unless a digit, letter or closing bracket stands before it.
    """
    text = text.translate(_MINUS)
    found = []
    for match in _NUMBER.finditer(text):
        start = match.start()
        negative = text[start - 1 : start] == "-" and not _joins(text[start - 2 : start - 1])
        number = canonical(match.group())
        if number is not None:
            found.append(f"-{number}" if negative and number != "0" else number)
    return found


def _joins(before: str) -> bool:
    return before.isalnum() or before in (")", "]", "}") if before else False


def grade(text: str, answer: str, *, truncated: bool = False) -> Grade:
    """Returns reward 1 if the number of the text equals `answer`, else 0."""
    stated = stated_answer(text)
    if stated is not None:
        found = numbers(stated.rpartition("=")[2])
        prediction = found[0] if len(found) == 1 else None
    elif truncated:
        prediction = None
    else:
        found = numbers(after_thinking(text)[-10_000:])
        prediction = found[-1] if found else None
    correct = prediction is not None and prediction == canonical(answer)
    feedback = ""
    if prediction is None:
        feedback = (
            "Your response was cut off before it stated an answer."
            if truncated
            else "Your response does not state one number as its answer."
        )
    return Grade(
        reward=float(correct),
        correct=correct,
        feedback=feedback,
        details={"prediction": prediction, "truncated": truncated},
    )
