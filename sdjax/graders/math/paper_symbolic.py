"""Compares two answers as the evaluation of arXiv:2603.24472 does. Runs in workers only.

It reproduces `math_equal` in eval/utils/grader.py of the paper's code, on a machine where sympy's
own LaTeX parser fails. It fails with the antlr version that the paper's requirements pin.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

from sdjax.graders.math import safe_parse

MAX_DEPTH = 5


def same(prediction: str, gold: str) -> bool:
    """Returns whether two stripped answers are equal."""
    return _equal(prediction, gold, 0)


def numeric(prediction: str, gold: str) -> bool | None:
    """Returns a verdict if both are numbers. A hundredth and a hundredfold count as equal too."""
    value, wanted = _digits(prediction), _digits(gold)
    if value is None or wanted is None:
        return None
    # Python's default relative tolerance applies as well.
    return any(math.isclose(x, value, abs_tol=1e-4) for x in (wanted / 100, wanted, wanted * 100))


def _digits(text: str) -> float | None:
    text = text.replace(",", "")
    percent = text.endswith("%")
    if percent:
        text = text.removesuffix("%").removesuffix("\\")
    try:
        value = float(text)
    except ValueError:
        return None
    return value / 100 if percent else value


def _equal(prediction: str, gold: str, depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    prediction, gold = prediction.strip(), gold.strip()
    if prediction.lower() == gold.lower() or (
        gold in list("ABCDE") and _choice(prediction) == gold
    ):
        return True
    unlabelled = re.sub(r"^(?:\*\*[A-E]\*\*|\([A-E]\)|[A-E][.):])\s*", "", prediction)
    if unlabelled != prediction and unlabelled and _equal(unlabelled, gold, depth + 1):
        return True
    ours, theirs = sorted(prediction.split(",")), sorted(gold.split(","))
    if len(ours) == len(theirs) > 1 and _all_equal(ours, theirs, depth):
        return True
    verdict = numeric(prediction, gold)
    return _structured(prediction, gold, depth) if verdict is None else verdict


def _choice(text: str) -> str:
    """Returns the last letter A to E that is a whole word, or ""."""
    letters = re.findall(r"\b([A-E])\b", text.upper())
    return letters[-1] if letters else ""


def _all_equal(ours: list[str], theirs: list[str], depth: int) -> bool:
    return len(ours) == len(theirs) and all(
        _equal(p, g, depth + 1) for p, g in zip(ours, theirs, strict=True)
    )


def _structured(prediction: str, gold: str, depth: int) -> bool:
    """Returns a verdict on texts without brackets, then on elements, entries or equations."""
    if _bare(prediction, gold):
        return True
    # The papers' code asks only whether a bracket opens both texts and one closes later.
    bracketed = re.compile(r"[(\[].+[)\]]")
    if bracketed.match(prediction) and bracketed.match(gold):
        ours, theirs = prediction[1:-1].split(","), gold[1:-1].split(",")
        if _all_equal(ours, theirs, depth):
            return True
    if "pmatrix" in prediction and "pmatrix" in gold and _matrices(prediction, gold, depth):
        return True
    if prediction.count("=") == gold.count("=") == 1:
        ours_side, theirs_side = _one_side(prediction), _one_side(gold)
        return _symbolic(ours_side, theirs_side) or _symbolic(f"-({ours_side})", theirs_side)
    for one, other in ((prediction, gold), (gold, prediction)):
        name, equals, value = one.partition("=")
        if equals and "=" not in value + other and len(name.strip()) <= 2:
            return _equal(value, other, depth + 1)
    return _symbolic(prediction, gold)


def _bare(prediction: str, gold: str) -> bool:
    """Returns whether two texts are equal without their brackets and case."""
    ends, other = prediction[:1] + prediction[-1:], gold[:1]
    if (ends == "[]" and other != "(") or (ends == "()" and other != "["):
        prediction, gold = prediction.strip("[]()"), gold.strip("[]()")
    ours, theirs = (re.sub(r"[{}()]", "", text).lower() for text in (prediction, gold))
    return ours == theirs


def _one_side(equation: str) -> str:
    left, _, right = equation.partition("=")
    return f"{left.strip()} - ({right.strip()})"


def _matrices(prediction: str, gold: str, depth: int) -> bool:
    pattern = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
    found, wanted = pattern.fullmatch(prediction), pattern.fullmatch(gold)
    if found is None or wanted is None:
        return False
    cells = [
        [row.split("&") for row in m.group(1).split("\\\\") if row.strip()] for m in (found, wanted)
    ]
    return len(cells[0]) == len(cells[1]) and all(
        _all_equal(p, g, depth) for p, g in zip(*cells, strict=True)
    )


# The papers' parser reads past these.
_SKIPPED = re.compile(r"\\(?:displaystyle|[,:;!])|\\$")
# But not a backslash after a number alone.
_UNREAD = re.compile(r"-?[\d.]+\\")


def _parsed(text: str) -> Any:
    """Returns a sympy expression, or the text if neither parser reads it."""
    if _UNREAD.fullmatch(text):
        return text
    texts = dict.fromkeys((text.replace("\\\\", "\\"), text))
    for parse in (safe_parse.parse, _latex):
        for candidate in texts:
            with contextlib.suppress(Exception):
                return parse(candidate)
    return text


def _latex(text: str) -> Any:
    """Returns the expression that LaTeX states; raises an exception for a text that is none."""
    if not text.isascii():
        raise ValueError("not LaTeX")
    # The papers' parser reads a number before a fraction as a factor.
    text = re.sub(r"(?<=\d)\\frac", r"\\cdot\\frac", _SKIPPED.sub(" ", text))
    return latex2sympy(text, normalization_config=None)


def _symbolic(prediction: str, gold: str) -> bool:
    ours, theirs = _parsed(prediction), _parsed(gold)
    if str(ours) == str(theirs):
        return True
    tests = (
        lambda: bool(ours == theirs),
        lambda: bool(ours.equals(theirs)) or sympy.simplify(ours - theirs) == 0,
        lambda: bool(abs(ours.lhs - ours.rhs).equals(abs(theirs.lhs - theirs.rhs))),
        lambda: math.isclose(float(sympy.N(ours)), float(sympy.N(theirs)), abs_tol=1e-4),
    )
    for test in tests:
        try:
            if test():
                return True
        except Exception:
            continue
    return False
