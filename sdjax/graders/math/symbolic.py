"""Compares answers with sympy. Runs in worker processes only, because sympy may hang."""

from __future__ import annotations

import logging
from functools import lru_cache

import sympy
from math_verify import LatexExtractionConfig, parse, verify

from sdjax.graders.math import equality

logging.disable(logging.CRITICAL)


class _Unreadable(Exception):
    """Raised for a text that math-verify cannot read."""


def same(prediction: str, gold: str) -> bool:
    """Returns whether two answers mean the same: `equality.same`, with sympy as its leaf."""
    return equality.same(prediction, gold, _equal)


def _equal(prediction: str, gold: str) -> bool:
    try:
        theirs, ours = _parsed(gold), _parsed(prediction)
    except _Unreadable:
        return False
    if len(ours) == len(theirs) == 1 and _differ(ours[0], theirs[0]):
        return False
    return verify([*theirs], [*ours], timeout_seconds=None, allow_set_relation_comp=True)


# The answers of a group share their gold, so it is kept. A failure to read is not kept, because a
# lack of memory that another answer caused may be the reason.
@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[sympy.Basic, ...]:
    found = parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # type: ignore[arg-type]
    )
    if not found:
        raise _Unreadable
    return tuple(found)


_ELEMENTARY = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Number,
    sympy.NumberSymbol,
    sympy.Symbol,
    sympy.log,
    sympy.functions.elementary.trigonometric.TrigonometricFunction,
)
_CLEARLY = 1e-3


def _differ(ours: sympy.Basic, theirs: sympy.Basic) -> bool:
    """Returns whether two expressions are far apart at one point; False if that is not certain.

    It replaces variables by numbers. This saves the simplification of most wrong answers, which
    takes longer than all the rest. A lone variable may be a word, so numbers cannot decide it.
    """
    if isinstance(ours, sympy.Symbol) or isinstance(theirs, sympy.Symbol):
        return False
    if not all(
        isinstance(n, _ELEMENTARY) for e in (ours, theirs) for n in sympy.preorder_traversal(e)
    ):
        return False
    symbols = ours.free_symbols | theirs.free_symbols
    names = sorted({s.name for s in symbols})
    # Roots and logarithms of positive numbers are real. Symbols of one name may differ in their
    # assumptions but get the same number.
    points = {s: sympy.Float(1.37 + 0.61 * names.index(s.name)) for s in symbols}
    try:
        a, b = (complex(e.evalf(15, subs=points)) for e in (ours, theirs))
        return abs(a - b) > _CLEARLY * max(1, abs(a), abs(b))
    except Exception:
        return False


def reference(prediction: str, gold: str) -> bool:
    """Returns the verdict of the papers' reward: math-verify's defaults on the bare strings."""
    parsed = [parse(text, parsing_timeout=None) for text in (gold, prediction)]  # type: ignore[arg-type]
    return verify(*parsed, timeout_seconds=None)
