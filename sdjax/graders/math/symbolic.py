"""Compares answers with sympy. Runs in worker processes only, because sympy may hang."""

from __future__ import annotations

import functools
import logging
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from sdjax.graders.answer import tolerance as tolerances
from sdjax.graders.math import equality

logging.disable(logging.CRITICAL)

# The parts of an answer are known by now: "6m" is a product, and has no unit to remove.
_EXPRESSION = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none",
        equations=False,
    )
)  # fmt: skip
# Digits in which two constants are compared, and the most digits that a difference may cancel.
_DIGITS, _CANCELLED = 50, 400
_NOTHING = sympy.Float(10, 30) ** -100


class _Unreadable(Exception):
    """Raised for a text that math-verify cannot read."""


def same(prediction: str, gold: str, tolerance: float | None = None) -> bool:
    """Returns whether two answers mean the same: `equality.same`, with sympy as its leaf."""
    leaf = functools.partial(_equal, tolerance=tolerance)
    return equality.same(prediction, gold, leaf, tolerance)


def _equal(prediction: str, gold: str, tolerance: float | None) -> bool:
    try:
        theirs, ours = _parsed(gold), _parsed(prediction)
    except _Unreadable:
        return False
    if len(ours) == len(theirs) == 1:
        if _is_constant(ours[0]) and _is_constant(theirs[0]):
            return _same_constant(prediction, gold, ours[0], theirs[0], tolerance)
        if _differ(ours[0], theirs[0]):
            return False
        # This is far quicker than the simplification that math-verify begins with.
        if _is_elementary(ours[0]) and _is_elementary(theirs[0]):
            if sympy.expand(_exact(ours[0]) - _exact(theirs[0])) == 0:
                return True
    return verify([*theirs], [*ours], timeout_seconds=None, allow_set_relation_comp=True)


# The answers of a group share their gold, so it is kept. A failure to read is not kept, because a
# lack of memory that another answer caused may be the reason.
@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[sympy.Basic, ...]:
    found = parse(
        f"${text}$",
        extraction_config=[_EXPRESSION],
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
    sympy.core.numbers.ImaginaryUnit,
    sympy.Symbol,
    sympy.log,
    sympy.functions.elementary.trigonometric.TrigonometricFunction,
)
_CLEARLY = 1e-9


def _is_elementary(expression: sympy.Basic) -> bool:
    return all(isinstance(node, _ELEMENTARY) for node in sympy.preorder_traversal(expression))


def _is_constant(expression: sympy.Basic) -> bool:
    infinite = expression.has(sympy.oo, sympy.zoo, sympy.nan)
    return not expression.free_symbols and not infinite and _is_elementary(expression)


def _same_constant(
    prediction: str, gold: str, ours: sympy.Basic, theirs: sympy.Basic, tolerance: float | None
) -> bool:
    """Returns whether two constants are equal: exactly, or as the decimals that they are."""
    if tolerance is None:
        tolerance = tolerances.of_answer(gold)
    a, b = _exact(ours), _exact(theirs)
    if a.is_Rational and b.is_Rational:
        value, exact = (Fraction(int(x.p), int(x.q)) for x in (a, b))
        return tolerances.close(value, exact, tolerance)
    difference = sympy.Abs((a - b).evalf(_DIGITS, maxn=_CANCELLED))
    size = sympy.Abs(b.evalf(_DIGITS, maxn=_CANCELLED))
    if a.is_integer and b.is_integer:
        return bool(difference <= max(size * tolerance, 0.5))
    if difference <= max(size * max(_NOTHING, tolerance), _NOTHING**3):
        return True
    value = b.evalf(_DIGITS)
    return bool(value.is_Float) and equality.rounds_to(prediction, Fraction(str(value)))


def _exact(expression: sympy.Basic) -> sympy.Basic:
    """Returns an expression whose decimals are fractions."""
    decimals = expression.atoms(sympy.Float)
    return expression.xreplace({d: sympy.Rational(str(d)) for d in decimals})


def _differ(ours: sympy.Basic, theirs: sympy.Basic) -> bool:
    """Returns whether two expressions differ at one point; False if that is not certain.

    It replaces variables by numbers. This saves the simplification of most wrong answers, which
    takes longer than all the rest. A lone variable may be a word, so numbers cannot decide it.
    """
    if isinstance(ours, sympy.Symbol) or isinstance(theirs, sympy.Symbol):
        return False
    if not (_is_elementary(ours) and _is_elementary(theirs)):
        return False
    symbols = ours.free_symbols | theirs.free_symbols
    names = sorted({s.name for s in symbols})
    # Roots and logarithms of positive numbers are real. Symbols of one name may differ in their
    # assumptions but get the same number.
    points = {s: sympy.Float(1.37 + 0.61 * names.index(s.name)) for s in symbols}
    try:
        a, b = (complex(e.evalf(15, subs=points)) for e in (ours, theirs))
        return abs(a - b) > _CLEARLY * max(abs(a), abs(b))
    except Exception:
        return False


def reference(prediction: str, gold: str) -> bool:
    """Returns the verdict of the papers' reward: math-verify's defaults on the bare strings."""
    parsed = [parse(text, parsing_timeout=None) for text in (gold, prediction)]  # type: ignore[arg-type]
    return verify(*parsed, timeout_seconds=None)
