"""Decides whether two mathematical answers mean the same.

It takes the structure first: names, lists, tuples, intervals, sets, unions and matrices, down to
single elements. Then it compares elements: words, units and numbers, without sympy. A function
`leaf`, which may use sympy, compares the expressions that remain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sdjax.graders.answer import tolerance as tolerances
from sdjax.graders.math import parts, quantity
from sdjax.graders.math.latex import spell, tight

Leaf = Callable[[str, str], bool]

MAX_ELEMENTS = 32
MAX_DEPTH = 6
# A decimal must show this many digits to stand for a number that has no finite decimal.
SIGNIFICANT = 6


class Unsure(Exception):
    """Raised by a leaf that cannot decide."""


def unsure(prediction: str, gold: str) -> bool:
    """Raises Unsure: a leaf that decides nothing."""
    raise Unsure


def same(prediction: str, gold: str, leaf: Leaf, tolerance: float | None = None) -> bool:
    """Returns whether two answers mean the same; `leaf` compares single expressions.

    `tolerance` is the relative tolerance of every number, None for that of `tolerance.of_answer`.
    """
    return _Comparison(leaf, tolerance).same(spell(prediction), spell(gold), MAX_DEPTH)


@dataclass(frozen=True)
class _Comparison:
    """Compares two spelled answers, part by part; `depth` is how many levels may follow."""

    leaf: Leaf
    tolerance: float | None

    def same(self, ours: str, theirs: str, depth: int) -> bool:
        if not ours or not theirs or depth == 0:
            return False
        word = _word(ours)
        if tight(ours) == tight(theirs) or (word is not None and word == _word(theirs)):
            return True
        number, *several = parts.readings(theirs)
        if several:
            as_list = parts.listing(several[0])
            bracketed = as_list is not None and as_list.brackets != ""
            # Read as a list, "58,500" has an order, because it may be a number after all.
            in_order = parts.Listing("", tuple(parts.items(several[0])), ordered=True)
            if any(self._lists(p, in_order, depth) for p in parts.readings(ours)):
                return True
            if any(self._names(p, several[0], depth) for p in parts.readings(ours) if bracketed):
                return True
            return self._names(parts.readings(ours)[0], number, depth)
        return any(self._names(p, theirs, depth) for p in parts.readings(ours))

    def _names(self, ours: str, theirs: str, depth: int) -> bool:
        """Compares the values of equal names, or in the order given if one side has no names."""
        left, right = parts.named(ours), parts.named(theirs)
        if all(one.name for one in left) and all(one.name for one in right):
            if len(left) == len(right) == 1 and not parts.same_name(left[0].name, right[0].name):
                if parts.is_at_number(left[0].name) and parts.is_at_number(right[0].name):
                    return False
                # y - 2x = 3 and y = 2x + 3 are the same line.
                return self.leaf(tight(ours), tight(theirs))
            return len(left) == len(right) and self._by_name(left, right, depth)
        if len(left) == len(right) == 1:
            if "=" in ours and "=" in theirs and "=" in left[0].value + right[0].value:
                return self.leaf(tight(ours), tight(theirs))
            if "=" in left[0].value:
                # 2 + 3 = 5 states 5.
                sides = left[0].value.split("=")
                return all(self.same(side.strip(), theirs, depth - 1) for side in sides)
        return self._lists(_values(left, ours), _values(right, theirs), depth)

    def _by_name(
        self, left: Sequence[parts.Named], right: Sequence[parts.Named], depth: int
    ) -> bool:
        if len(left) == 1:
            return self.same(left[0].value, right[0].value, depth - 1)
        names = {one.name for one in left}
        return names == {one.name for one in right} and all(
            self._unordered(
                [one.value for one in left if one.name == name],
                [one.value for one in right if one.name == name],
                depth,
            )
            for name in names
        )

    def _lists(self, ours: str | parts.Listing, theirs: str | parts.Listing, depth: int) -> bool:
        left = parts.listing(ours) if isinstance(ours, str) else ours
        right = parts.listing(theirs) if isinstance(theirs, str) else theirs
        if left is None and right is None and isinstance(ours, str) and isinstance(theirs, str):
            return self._single(ours, theirs, depth)
        if left is None or right is None:
            alone = _of_one(left) or _of_one(right)
            if alone is not None and isinstance(ours, str) and isinstance(theirs, str):
                pair = (ours, alone) if left is None else (alone, theirs)
                return self.same(*pair, depth - 1)
            return self._relation(ours, theirs, depth)
        if left.brackets != right.brackets:
            # Brackets say whether the ends belong to an interval. Other lists may leave them out.
            if left.brackets and right.brackets:
                return False
            if parts.is_interval(left) or parts.is_interval(right):
                return False
        if len(left.elements) != len(right.elements) or len(right.elements) > MAX_ELEMENTS:
            return False
        if not left.ordered and not right.ordered:
            return self._unordered(left.elements, right.elements, depth)
        return self._in_order(left.elements, right.elements, depth)

    def _relation(self, ours: str | parts.Listing, theirs: str | parts.Listing, depth: int) -> bool:
        """Compares a list with what is none: an inequality or a set may stand for an interval."""
        if not isinstance(ours, str) or not isinstance(theirs, str):
            return False
        # x < 1 or x > 3 is the union of two intervals.
        for listed, joined in ((ours, theirs), (theirs, ours)):
            found, united = parts.listing(listed), parts.union(joined)
            if found and united and found.brackets == "" and all(map(_is_relation, found.elements)):
                return len(united) == len(found.elements) and self._unordered(
                    found.elements, united, depth
                )
        if "\\mathbb{R}" in (tight(ours), tight(theirs)):
            other = parts.listing(ours) or parts.listing(theirs)
            return other is not None and _is_everything(other)
        described = [t for t in (ours, theirs) if _is_relation(t) or parts.union(t)]
        return len(described) == 1 and self.leaf(tight(ours), tight(theirs))

    def _in_order(self, ours: Sequence[str], theirs: Sequence[str], depth: int) -> bool:
        return len(ours) == len(theirs) and all(
            self.same(p, g, depth - 1) for p, g in zip(ours, theirs, strict=True)
        )

    def _unordered(self, ours: Sequence[str], theirs: Sequence[str], depth: int) -> bool:
        left = list(theirs)
        for element in ours:
            match = next((g for g in left if self.same(element, g, depth - 1)), None)
            if match is None:
                return False
            left.remove(match)
        return not left

    def _single(self, ours: str, theirs: str, depth: int) -> bool:
        """Compares two answers that are no lists."""
        if (left := parts.union(ours)) and (right := parts.union(theirs)):
            return len(left) == len(right) and self._unordered(left, right, depth)
        if (rows := parts.matrix(ours)) and (gold_rows := parts.matrix(theirs)):
            return len(rows) == len(gold_rows) and all(
                self._in_order(p, g, depth) for p, g in zip(rows, gold_rows, strict=True)
            )
        if _is_relation(ours) or _is_relation(theirs):
            return self.leaf(tight(ours), tight(theirs))
        p, g = quantity.read(ours), quantity.read(theirs)
        if quantity.conflict(p, g) or not p.text or not g.text:
            return False
        verdict = self._numbers(p, g)
        if verdict is not None:
            return verdict
        if p.percent != g.percent:
            return False
        if (p.text, g.text) != (tight(ours), tight(theirs)):
            return self.same(p.text, g.text, depth - 1)
        if not _letters_of_one_product(p.text, g.text) and (_is_word(p.text) or _is_word(g.text)):
            return False
        return _base(p.text) == _base(g.text) and self.leaf(p.text, g.text)

    def _numbers(self, ours: quantity.Quantity, theirs: quantity.Quantity) -> bool | None:
        """Returns a verdict if both are numbers, else None."""
        if ours.value is None or theirs.value is None:
            return None
        tolerance = tolerances.of_answer(theirs.text) if self.tolerance is None else self.tolerance
        if tolerances.close(ours.value, theirs.value, tolerance):
            return True
        if ours.percent != theirs.percent:
            hundredth = Fraction(1, 100)
            return ours.value * (hundredth if ours.percent else 1) == theirs.value * (
                hundredth if theirs.percent else 1
            )
        return not _finite(theirs.value) and rounds_to(ours.text, theirs.value)


def _of_one(found: parts.Listing | None) -> str | None:
    """Returns the element of a set that has only one, else None."""
    return found.elements[0] if found is not None and len(found.elements) == 1 else None


def _values(found: Sequence[parts.Named], text: str) -> str | parts.Listing:
    """Returns the values without their names; those of several names have an order."""
    if not any(one.name or one.value != text for one in found):
        return text
    values = tuple(one.value for one in found)
    if len(values) == 1:
        return values[0]
    if not all(one.name for one in found):
        return text
    return parts.Listing("", values, ordered=len({one.name for one in found}) > 1)


def _word(text: str) -> str | None:
    """Returns a word or an option's letter without brackets, spaces and case, or None."""
    bare = quantity.bare(text)
    if not _is_word(bare) and not re.fullmatch(r"\(?[a-z]\)?", bare):
        return None
    word = bare.strip("(). ").replace(" ", "")
    if len(word) == 1:
        return word.lower() if word in "ABCDEFGHIJabcdefghij" else word
    # AB and ab may be products of different unknowns, unlike "No" and "no".
    return word[0].lower() + word[1:] if len(word) == 2 else word.lower()


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[^\W\d_]{2,}(?:[ -][^\W\d_]+)*|\(?[A-Z]\)?", text) is not None


def _letters_of_one_product(ours: str, theirs: str) -> bool:
    """Returns whether both are the same few letters, such as "xy" and "yx", but no words."""
    letters = sorted(ours) == sorted(theirs)
    return letters and re.fullmatch(r"[b-df-hj-np-tv-zA]{2,3}", ours) is not None


def _is_relation(text: str) -> bool:
    """Returns whether a text is an inequality, which may stand for an interval."""
    return re.search(r"[<>]|\\(?:le|ge|lt|gt|ne)(?![a-zA-Z])", text) is not None


def _is_everything(found: parts.Listing) -> bool:
    """Returns whether an interval holds all real numbers."""
    ends = [tight(element).replace("+", "") for element in found.elements]
    return found.brackets == "()" and ends == ["-\\infty", "\\infty"]


def _base(text: str) -> str | None:
    """Returns the base of a number such as 52_{8}, which is its index, or None."""
    match = re.fullmatch(r"\(?[0-9A-F]+\)?_\{(\w+)\}", text)
    return match.group(1) if match else None


def rounds_to(text: str, exact: Fraction) -> bool:
    """Returns whether a text is the decimal of `exact`, cut or rounded at SIGNIFICANT digits."""
    if not quantity.is_decimal(text):
        return False
    places = len(text.partition(".")[2])
    shown = len(re.sub(r"\D", "", text).lstrip("0"))
    return shown >= SIGNIFICANT and abs(Fraction(text) - exact) < Fraction(1, 10**places)


def _finite(value: Fraction) -> bool:
    """Returns whether a number has a finite decimal expansion."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
