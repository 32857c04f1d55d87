"""Checks of config values. Each raises a UserError with the field, its value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdjax.errors import UserError


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raises a UserError with the field, its value and the remedy, unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {remedy}")


def require_names(field: str, names: Iterable[str]) -> None:
    """Raises a UserError with the field and the name, unless each name can be part of a metric's
    name."""
    for name in names:
        ok = re.fullmatch(r"\w+", name) is not None
        require(ok, field, name, "names must be letters, digits and _")


def require_one(name: str, value: int) -> None:
    """Raises a UserError with the field and its value, unless the value is at least 1."""
    require(value >= 1, name, value, "must be at least 1")


def require_seed(name: str, value: int) -> None:
    """Raises UserError unless the value is a seed that numpy and JAX both take."""
    require(0 <= value < 2**31, name, value, "must lie between 0 and 2147483647")
