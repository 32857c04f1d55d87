"""Decides whether two mathematical answers mean the same.

It compares numbers, words, lists, intervals and matrices without sympy. A function `leaf`, which
may use sympy, compares the single expressions that remain.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from sdjax.graders.math.latex import Listing, clean, is_decimal, listing, matrix, number, plus_minus

Leaf = Callable[[str, str], bool]

MAX_ELEMENTS = 32
MAX_DEPTH = 4
# A decimal must show this many digits to stand for a number that has no finite decimal.
SIGNIFICANT = 6


class Unsure(Exception):
    """Raised by a leaf that cannot decide."""


def unsure(prediction: str, gold: str) -> bool:
    """Raises Unsure: a leaf that decides nothing."""
    raise Unsure


def same(prediction: str, gold: str, leaf: Leaf) -> bool:
    """Returns whether two answers mean the same; `leaf` compares single expressions."""
    if _same(clean(prediction), clean(gold), leaf, MAX_DEPTH):
        return True
    # y - 2x = 3 and y = 2x + 3 are the same line, but their right sides differ.
    equations = "=" in prediction and "=" in gold
    return equations and leaf(clean(prediction, named=True), clean(gold, named=True))


def _same(prediction: str, gold: str, leaf: Leaf, depth: int) -> bool:
    """Returns whether two cleaned answers mean the same."""
    if not prediction or not gold or depth == 0:
        return False
    if prediction == gold or _plain(prediction) == _plain(gold):
        return True
    verdict = _numbers(prediction, gold)
    if verdict is not None:
        return verdict
    ours, theirs = _listing(prediction), _listing(gold)
    if _is_relation(prediction) != _is_relation(gold):
        return leaf(prediction, gold)
    if ours is not None or theirs is not None:
        return _lists(ours, theirs, leaf, depth)
    rows, gold_rows = matrix(prediction), matrix(gold)
    if rows is not None and gold_rows is not None:
        return _matrices(rows, gold_rows, leaf, depth)
    if _is_words(prediction) or _is_words(gold) or _base(prediction) != _base(gold):
        return False
    return leaf(prediction, gold)


def _plain(text: str) -> str:
    """Returns a word or letter without brackets, spaces and case, and other text unchanged."""
    bare = text.strip("(). ")
    return bare.replace(" ", "").lower() if _is_words(bare) else text


def _is_words(text: str) -> bool:
    return re.fullmatch(r"[^\W\d_]{2,}(?:[ -][^\W\d_]+)*|\(?[A-Z]\)?", text) is not None


def _is_relation(text: str) -> bool:
    """Returns whether a text is an inequality, which may stand for an interval."""
    return re.search(r"[<>]|\\(?:le|ge|lt|gt)(?![a-zA-Z])", text) is not None


def _base(text: str) -> str | None:
    """Returns the base of a number such as 52_{8}, which is its index, or None."""
    match = re.fullmatch(r"[0-9A-F]+_\{(\d+)\}", text)
    return match.group(1) if match else None


def _numbers(prediction: str, gold: str) -> bool | None:
    """Returns a verdict if both answers are numbers, else None."""
    ours, theirs = number(prediction.rstrip("%")), number(gold.rstrip("%"))
    if ours is None or theirs is None:
        return None
    if ours == theirs:
        return True
    if prediction.endswith("%") != gold.endswith("%"):
        percent, other = (ours, theirs) if prediction.endswith("%") else (theirs, ours)
        return percent / 100 == other
    return is_decimal(prediction) and not _finite(theirs) and _rounds_to(prediction, ours, theirs)


def _finite(value: Fraction) -> bool:
    """Returns whether a number has a finite decimal expansion."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _rounds_to(text: str, value: Fraction, exact: Fraction) -> bool:
    """Returns whether a decimal is `exact`, cut or rounded at SIGNIFICANT digits or more."""
    places = len(text.partition(".")[2])
    shown = len(re.sub(r"\D", "", text).lstrip("0"))
    return shown >= SIGNIFICANT and abs(value - exact) < Fraction(1, 10**places)


def _listing(text: str) -> Listing | None:
    both = plus_minus(text)
    return Listing("", both) if both is not None else listing(text)


def _lists(ours: Listing | None, theirs: Listing | None, leaf: Leaf, depth: int) -> bool:
    """Returns whether two lists mean the same; None stands for an answer that is no list."""
    if ours is None or theirs is None:
        return False
    if len(ours.elements) != len(theirs.elements) or len(theirs.elements) > MAX_ELEMENTS:
        return False
    # Brackets say whether the ends belong to an interval. One answer may leave them out.
    if ours.brackets != theirs.brackets and ours.brackets and theirs.brackets:
        return False
    if {ours.brackets, theirs.brackets} <= {"", "{}"}:
        return _unordered(ours.elements, theirs.elements, leaf, depth)
    pairs = zip(ours.elements, theirs.elements, strict=True)
    return all(_same(p, g, leaf, depth - 1) for p, g in pairs)


def _unordered(ours: tuple[str, ...], theirs: tuple[str, ...], leaf: Leaf, depth: int) -> bool:
    left = list(theirs)
    for element in ours:
        match = next((g for g in left if _same(element, g, leaf, depth - 1)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _matrices(ours: list[list[str]], theirs: list[list[str]], leaf: Leaf, depth: int) -> bool:
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return False
    return all(
        _same(p, g, leaf, depth - 1)
        for row, gold_row in zip(ours, theirs, strict=True)
        for p, g in zip(row, gold_row, strict=True)
    )
