"""Says in plain words why a file could not be fetched or sent."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import zlib
from collections.abc import Iterator
from typing import Any

BROKEN = "the connection broke before the end of the answer"
LATE = "no answer in time"
DAMAGED = "the answer is damaged"

_CLASSES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (socket.gaierror, "no such host, or no network"),
    (ssl.SSLCertVerificationError, "its certificate is not accepted"),
    (ssl.SSLError, "no secure connection"),
    (zlib.error, DAMAGED),
    (TimeoutError, LATE),
    ((http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionResetError), BROKEN),
    ((ConnectionAbortedError, BrokenPipeError), BROKEN),
    (http.client.InvalidURL, "no valid address"),
    (http.client.HTTPException, "the answer is not HTTP"),
)
"""What errors of Python mean, the narrower ones first."""
_NAMES = {
    "Timeout": LATE,
    "ProxyError": "the proxy cannot be reached",
    "ProtocolError": BROKEN,
    "ReadError": BROKEN,
    "Disconnected": BROKEN,
    "ChunkedEncodingError": BROKEN,
    "PayloadError": BROKEN,
    "DecodingError": DAMAGED,
    "DecodeError": DAMAGED,
    "ConnectError": "no connection",
    "ConnectorError": "no connection",
    "ConnectionError": "no connection",
}
"""What errors of libraries mean, by a part of the name of their class."""

_REFUSALS = {"HTTPError", "HTTPStatusError", "HfHubHTTPError"}
"""Errors of urllib, requests, httpx and the hub's client that may hold the status of an answer."""


def why(error: BaseException) -> str:
    """Returns one line without Python's own words: the innermost cause that has a known meaning.

    Of an error without one it is the first line of its text.
    """
    causes = list(_causes(error, set()))
    for cause in causes:
        if {cls.__name__ for cls in type(cause).__mro__} & _REFUSALS:
            answer = getattr(cause, "response", cause)
            status = getattr(answer, "status_code", None) or getattr(answer, "code", None)
            if isinstance(status, int):
                return f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()
    for cause in reversed(causes):
        for classes, words in _CLASSES:
            if isinstance(cause, classes):
                return words
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            return cause.strerror.lower()
    for cause in reversed(causes):
        for part, words in _NAMES.items():
            if any(part in cls.__name__ for cls in type(cause).__mro__):
                return words
    return _text(error)


def _causes(error: Any, seen: set[int]) -> Iterator[BaseException]:
    """Yields an error and those that it names as its causes, the outer ones first.

    Libraries also keep them as `reason` or among the arguments.
    """
    if not isinstance(error, BaseException) or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    hidden = None if error.__suppress_context__ else error.__context__
    for cause in (*error.args, getattr(error, "reason", None), error.__cause__, hidden):
        yield from _causes(cause, seen)


def _text(error: BaseException) -> str:
    """Returns the first line of an error's text without addresses of objects."""
    line = str(error).strip().partition("\n")[0][:300]
    line = re.sub(r"<[\w.]+(?: object)? at 0x[0-9a-f]+>:? ?|\[Errno -?\d+\] ", "", line)
    return line or type(error).__name__
