"""Checks of config values: each raises UserError that names the field, its value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdjax.errors import UserError


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raises UserError naming the field, its value and the remedy unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {remedy}")


def require_names(field: str, names: Iterable[str]) -> None:
    """Raises UserError naming the field and the name unless each can be part of a metric's."""
    for name in names:
        ok = re.fullmatch(r"\w+", name) is not None
        require(ok, field, name, "names must be letters, digits and _")


def require_one(name: str, value: int) -> None:
    """Raises UserError naming the field and its value unless it is at least 1."""
    require(value >= 1, name, value, "must be at least 1")
