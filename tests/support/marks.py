"""Parameters of a test, of which the README's command runs a few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def heavy_but(light: Iterable[Any], every: Iterable[Any]) -> list[Any]:
    """Returns every parameter, or tuple of them, all but the light ones marked heavy."""
    light = set(light)

    def heavy(value: Any) -> Any:
        values = value if isinstance(value, tuple) else (value,)
        return pytest.param(*values, marks=pytest.mark.heavy)

    return [value if value in light else heavy(value) for value in every]


def heavy_but_every_third(every: Iterable[Any]) -> list[Any]:
    """Returns every tuple of parameters, two of three marked heavy."""
    return [
        values if i % 3 == 0 else pytest.param(*values, marks=pytest.mark.heavy)
        for i, values in enumerate(every)
    ]
