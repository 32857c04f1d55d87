"""Writes text files whole or not at all, and makes JSON of rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import writing


def write_text(path: Path, text: str) -> None:
    """Writes a file at once: a reader finds the old text or the new text, never a part.

    Raises WriteError if that fails.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def to_json(row: Mapping[str, Any]) -> str:
    """Returns one line of JSON; numpy values become plain ones.

    NaN and infinities become the strings "NaN", "Infinity" and "-Infinity", because JSON has no
    such numbers. Python's float() and JavaScript's Number() read them back.
    """
    try:
        return json.dumps(row, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), allow_nan=False)


def _plain(value: object) -> object:
    """Returns a numpy value as lists and numbers; raises TypeError for any other value."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")


def _finite(value: Any) -> Any:
    """Returns the value with strings in place of NaN and infinities."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
