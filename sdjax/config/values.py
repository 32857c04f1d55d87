"""Configs as nested plain values, for files and comparisons."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sdjax.io import redact


def to_dict(config: object) -> dict:
    """Returns a config as nested plain values; each section also holds the name of its class."""
    out: dict = {"class": type(config).__name__}
    return out | {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}  # type: ignore[arg-type]


def to_public(config: object) -> dict:
    """Returns `to_dict` of a config as JSON values for a file, without secrets.

    A function becomes its module and name, which stay the same in every process.
    """
    return redact.redacted(json.loads(json.dumps(to_dict(config), default=_named)))


def _named(value: object) -> str:
    """Returns a value that JSON lacks as text."""
    if not callable(value):
        return str(value)
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}:{owner.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values by their path, "section.field"."""
    out: dict[str, Any] = {}
    for name, inner in value.items():
        full = prefix + name
        out |= flat(inner, f"{full}.") if isinstance(inner, dict) else {full: inner}
    return out
