"""Checks of config values. Each raises a UserError with the field, its value and the remedy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

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


def require_repository(name: str, value: str) -> None:
    """Raises a UserError unless the value is empty or OWNER/NAME of the Hugging Face hub."""
    ok = not value or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value, re.ASCII) is not None
    require(ok, name, value, "must be OWNER/NAME of the Hugging Face hub")


def require_one(name: str, value: int) -> None:
    """Raises a UserError with the field and its value, unless the value is at least 1."""
    require(value >= 1, name, value, "must be at least 1")


LEAST, LARGEST = 1.1754944e-38, 3.4028235e38
"""The sizes of a float32: on the devices a smaller number would be 0, and a larger one infinite."""


def require_finite(section: Any, at: str = "") -> None:
    """Raises a UserError for a float of a config section that is NaN, infinite or out of range.

    It looks into tuples and dicts too. `at` is the prefix of the field names, such as "optim.".
    """
    for field in dataclasses.fields(section):
        for name, value in _floats(at + field.name, getattr(section, field.name)):
            ok = value == 0 or LEAST <= abs(value) <= LARGEST
            require(ok, name, value, "must be 0 or a number of a size from 1.2e-38 to 3.4e38")


def _floats(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yields the name and the value of every float in a field's value."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _floats(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _floats(name, inner)


def require_seed(name: str, value: int) -> None:
    """Raises UserError unless the value is a seed that numpy and JAX both take."""
    require(0 <= value < 2**31, name, value, "must lie between 0 and 2147483647")
