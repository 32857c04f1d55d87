"""Parameters of a test, of which the README's command runs a few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def heavy_but(light: Iterable[str], every: Iterable[str]) -> list[Any]:
    """Returns every parameter, all but the light ones marked heavy."""
    light = set(light)
    return [v if v in light else pytest.param(v, marks=pytest.mark.heavy) for v in every]
