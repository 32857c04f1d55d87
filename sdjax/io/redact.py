"""Keeps secrets out of what a run writes and says. No jax."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""A shorter value is no secret worth the name, and hiding it would hide words."""
_NAMES = re.compile(
    r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?|netrc)(_|$)", re.IGNORECASE
)
# What gives itself away: user:password@ of an address, and tokens of the hub, of W&B, of GitHub.
_SHAPES = re.compile(
    r"(?<=://)[^\s/@'\"]+(?=@)|\bhf_[A-Za-z0-9]{16,}|\bgh[opsu]_[A-Za-z0-9]{16,}"
    r"|(?<=[?&]X-Amz-Signature=)\w+|(?<=[Bb]earer )[\w.~+/=-]{8,}"
)


def _secrets() -> list[str]:
    """Returns the values of environment variables whose names say that they are secret, also
    as Python and JSON write them.

    Not those that are paths: a file's name is needed in an error and gives nothing away.
    """
    values = {
        value
        for name, value in os.environ.items()
        if _NAMES.search(name) and len(value) >= SHORTEST and not os.path.exists(value)
    }
    written = {form(value)[1:-1] for value in values for form in (repr, json.dumps)}
    return sorted(values | written, key=len, reverse=True)


def redact(text: str) -> str:
    """Returns the text with everything secret in it replaced by HIDDEN."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


def redacted(value: Any) -> Any:
    """Returns plain values with every text in them redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


def one_line(text: str) -> str:
    """Returns the text redacted, on one line, without what a terminal would obey."""
    line = " ".join(redact(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class Formatter(logging.Formatter):
    """Log records without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's text."""
        return redact(super().format(record))
