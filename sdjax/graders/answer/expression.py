"""Grades an arithmetic expression that must use given numbers and reach a target.

The answer is the content of the last <answer> or box, else the last line after the thinking, with
or without "Answer:" in front. It is one expression of whole numbers, + - * / and parentheses, and
may end in "= TARGET". A completion that is cut off has no answer. The arithmetic is exact. An
expression has at most MAX_TEXT characters and its numbers at most MAX_DIGITS digits, so that its
value stays small for any text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.records import Grade

MAX_TEXT, MAX_DIGITS = 200, 6
FORM = re.compile(r"\d+(?: \d+)* = -?\d+", re.ASCII)
"""An answer, as the function `answer` writes it."""
_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)
_SIGNS = str.maketrans("−–×·÷:", "--**//")
_COMMANDS = {"times": "*", "cdot": "*", "div": "/", "left": "", "right": ""}
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Expression:
    """The value of an expression (None if it divides by 0) and its numbers, in order."""

    value: Fraction | None
    numbers: tuple[int, ...]


def answer(numbers: Sequence[int], target: int) -> str:
    """Returns the `answer` of an example, such as "3 4 5 = 24"."""
    return f"{' '.join(map(str, numbers))} = {target}"


def parse(text: str) -> Expression | None:
    """Returns the expression in a text, None for any other text."""
    if len(text) > MAX_TEXT:
        return None
    values: list[Fraction | None] = []
    pending: list[str] = []
    numbers: list[int] = []

    def apply() -> None:
        operation, b, a = pending.pop(), values.pop(), values.pop()
        values.append(_apply(operation, a, b))

    text, position, want_value = text.translate(_SIGNS).strip(), 0, True
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        digits, sign = match.groups()
        if want_value != (digits is not None or sign == "("):
            return None
        if digits is not None:
            if len(digits) > MAX_DIGITS:
                return None
            numbers.append(int(digits))
            values.append(Fraction(numbers[-1]))
            want_value = False
        elif sign == "(":
            pending.append(sign)
        elif sign == ")":
            while pending and pending[-1] != "(":
                apply()
            if not pending:
                return None
            pending.pop()
        else:
            while pending and _RANK.get(pending[-1], 0) >= _RANK[sign]:
                apply()
            pending.append(sign)
            want_value = True
    if want_value or "(" in pending:
        return None
    while pending:
        apply()
    return Expression(values[0], tuple(numbers))


def _apply(operation: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
    if a is None or b is None or (operation == "/" and b == 0):
        return None
    if operation == "/":
        return a / b
    return a + b if operation == "+" else a - b if operation == "-" else a * b


def stated(text: str) -> str:
    """Returns the part of a completion that holds its expression, with plain signs for LaTeX's."""
    found = stated_answer(text)
    if found is None:
        lines = after_thinking(text[-10_000:]).strip().splitlines()
        found = lines[-1] if lines else ""
    plain = _COMMAND.sub(lambda m: _COMMANDS[m.group(1)], found.removeprefix("Answer:"))
    return plain.strip(" \t\n$.")


def grade(text: str, answer: str, *, truncated: bool = False) -> Grade:
    """Returns reward 1 if the expression uses every number once and gives the target, else 0.

    `answer` has the form that the function `answer` writes.
    """
    numbers, _, target = answer.partition(" = ")
    found = "" if truncated else stated(text)
    left, equals, right = found.partition("=")
    expression = parse(left)
    correct, feedback = False, ""
    if truncated:
        feedback = "Your response was cut off before it stated an answer."
    elif expression is None:
        feedback = "Your response does not end with one expression."
    elif sorted(expression.numbers) != sorted(map(int, numbers.split())):
        feedback = "Your answer does not use each of the given numbers exactly once."
    elif expression.value is None:
        feedback = "Your answer divides by zero."
    elif expression.value != int(target):
        feedback = f"Your answer gives {expression.value}, not {target}."
    elif equals and right.strip() != target:
        feedback = f"Your answer says that it gives {right.strip()[:MAX_DIGITS]}, not {target}."
    else:
        correct = True
    details: dict[str, Any] = {"prediction": found[:MAX_TEXT] or None, "truncated": truncated}
    # Expressions are equal in maj@k if they use equal numbers and have an equal value.
    if expression is not None and expression.value is not None and (correct or not equals):
        details["vote"] = f"{sorted(expression.numbers)} = {expression.value}"
    return Grade(reward=float(correct), correct=correct, feedback=feedback, details=details)
