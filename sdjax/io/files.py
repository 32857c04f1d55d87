"""Writes files and folders whole or not at all, and makes JSON of rows."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import writing

PART = re.compile(r".+\.\d+\.part")
"""The name of a file that is not whole yet."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a new file, which takes the place of `path` at the end of the block.

    A reader finds the old file or the new one, never a part. If the block fails, nothing of the
    new one remains. Raises WriteError if it cannot be written. The directory must exist, so that
    one that is removed under a run does not come back without the run's other files.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            yield new
            os.replace(new, path)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yields a new folder, which takes the place of `out` at the end of the block.

    If the block fails, nothing of the new one remains, and the old one stays. If the process ends
    anywhere, `out` is whole or does not exist. Raises WriteError if it cannot be written.
    """
    new, old = (out.with_name(f"{out.name}.{end}") for end in ("partial", "old"))
    with writing(out):
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            yield new
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            new.rename(out)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            with suppress(OSError):
                if not out.exists():
                    old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, as `replacing` does; raises WriteError if that fails."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


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
