"""Keeps secrets out of everything that a run writes and prints."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Characters that a secret has at least. To hide shorter values would hide words."""
_NAMES = re.compile(
    r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?|netrc)(_|$)", re.IGNORECASE
)
# Secrets that their shape shows: user:password@ in an address, tokens of the hub and of GitHub,
# signatures of S3 addresses, and bearer tokens.
_SHAPES = re.compile(
    r"(?<=://)[^\s/@'\"]+(?=@)|\bhf_[A-Za-z0-9]{16,}|\bgh[opsu]_[A-Za-z0-9]{16,}"
    r"|(?<=[?&]X-Amz-Signature=)\w+|(?<=[Bb]earer )[\w.~+/=-]{8,}"
)


def _secrets() -> list[str]:
    """Returns the values of environment variables with secret names, also as Python and JSON
    write them.

    Values that are paths are left out, because errors need them and they give nothing away.
    """
    values = {
        value
        for name, value in os.environ.items()
        if _NAMES.search(name) and len(value) >= SHORTEST and not os.path.exists(value)
    }
    written = {form(value)[1:-1] for value in values for form in (repr, json.dumps)}
    return sorted(values | written, key=len, reverse=True)


def redact(text: str) -> str:
    """Returns the text with HIDDEN in place of each secret."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


def redacted(value: Any) -> Any:
    """Returns plain values with each string in them redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


def one_line(text: str) -> str:
    """Returns the redacted text on one line, without control characters."""
    line = " ".join(redact(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class Formatter(logging.Formatter):
    """Formats log records without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's text."""
        return redact(super().format(record))
