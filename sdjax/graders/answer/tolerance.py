"""Decides whether a number is close enough to the answer of an example."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from sdjax.errors import UserError

# A decimal with this many digits was computed in floating point, and nobody writes all of them.
COMPUTED_DIGITS = 12
COMPUTED_TOLERANCE = 1e-4


def checked(tolerance: float | None) -> float | None:
    """Returns a relative tolerance, or None; raises UserError for one that is no such number."""
    if tolerance is None:
        return None
    good = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not (good and math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise UserError(
            f"tolerance is {tolerance!r}: must be a relative tolerance from 0 to below 1, or None"
        )
    return float(tolerance)


def of_answer(text: str) -> float:
    """Returns the relative tolerance of an answer: that of a computed decimal, else 0."""
    mantissa = re.split("[eE]", text)[0]
    digits = re.sub(r"\D", "", mantissa).strip("0")
    computed = "." in mantissa.strip("0") and len(digits) >= COMPUTED_DIGITS
    return COMPUTED_TOLERANCE if computed and not re.search(r"\.0*$", mantissa) else 0.0


def close(value: Fraction, answer: Fraction, tolerance: float) -> bool:
    """Returns whether a value is within a relative tolerance of an answer."""
    return abs(value - answer) <= abs(answer) * Fraction(tolerance)
