"""Keeps secrets out of everything that a run writes and prints."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sdjax.errors import WriteError

HIDDEN = "***"
SHORTEST = 8
"""Characters that a secret has at least. To hide shorter values would hide words."""
_NAMES = re.compile(
    r"((token|secret|password|passwd|passphrase|api_?key|credential)s?"
    r"|(^|_)(key|pass|pat|pwd|auth|netrc|sas|jwt|dsn|cookie|bearer))\d*(_|$)",
    re.IGNORECASE,
)
# Secrets that their shape shows, in groups: what stays, then the secret.
_SHAPES = re.compile(
    # user:password@ in an address (a path of it has one slash), and parameters of signed addresses
    r"(:/{1,2})[^\s/@'\"]+(?=@)"
    r"|([?&](?:\w*(?:token|secret|password|passwd|signature|api_?key)|key|sig|auth|code|pwd"
    r"|AWSAccessKeyId|X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token))=)[^\s&'\"#<>]+"
    # headers
    r"|(\bbearer |\bauthorization: \w+ )[\w.~+/=-]{8,}"
    # tokens of GitHub, the hub, GitLab, Slack, npm, PyPI, Google, AWS, NVIDIA, Groq, Replicate
    r"|()\b(?:(?:github_pat|gh[opsur]|hf|api_org|npm|gsk|r8)_\w{16,}"
    r"|(?:glpat|xox[abprs]|nvapi|pypi)-[\w-]{16,}|AIza[\w-]{30,}|ya29\.[\w.-]{16,}"
    r"|A[KS]IA[0-9A-Z]{16}\b"
    # keys of OpenAI, Anthropic and others, which have a digit, unlike words; web tokens
    r"|sk-(?=[\w-]*\d)[\w-]{16,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)",
    re.IGNORECASE,
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
    return _SHAPES.sub(lambda found: "".join(g or "" for g in found.groups()) + HIDDEN, text)


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


class Stream:
    """A text stream that hides secrets in what is written to it; all else is the stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the redacted text and returns the length of the given one.

        Raises WriteError if the stream is a file that cannot grow, as `flush` does. On stderr that
        is not an error, because nothing could say so.
        """
        with self._reported():
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is waiting."""
        with self._reported():
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes the redacted lines."""
        for line in lines:
            self.write(line)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raises a WriteError in place of an OSError; what is printed afterwards goes nowhere.

        Otherwise Python would try again at its end, and change the exit code. A reader that is
        gone, as after `| head`, is no error.
        """
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._stream is not sys.__stderr__ and not isinstance(error, BrokenPipeError):
                raise WriteError.of("the output", error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_terminal() -> None:
    """Hides secrets in all that Python prints from now on: tracebacks and warnings too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream))
