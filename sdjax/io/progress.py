"""Says on the terminal how far a long preparation is; a quick one says nothing.

The lines go to the log, so the processes of a run but the first are silent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

EVERY_S = 10.0
"""Seconds of silence before a line."""
LATER_S = 2.0
"""Further seconds before a line that says the time alone, so that one with a count comes first."""

log = logging.getLogger(__name__)
_said = float("-inf")
"""When the last line was said, in seconds of time.monotonic."""


def told(items: Iterable[T], what: str, units: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, and says every EVERY_S seconds how many are done.

    A line is "tokenising: 12,000 of 60,000 prompts" with `what` "tokenising" and `units` "prompts".
    Without `total` it is "tokenising: 12,000 prompts".
    """
    of = "" if total is None else f" of {total:,}"
    start = time.monotonic()
    for number, item in enumerate(items):
        if _is_silent(start, EVERY_S):
            _say(f"{what}: {number:,}{of} {units}", log.info)
        yield item


@contextmanager
def waiting(what: str, say: Callable[[str], None] = log.info) -> Iterator[None]:
    """Says every EVERY_S seconds how long the block has taken, such as "compiling: 20 s"."""
    start, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(min(EVERY_S, 1.0)):
            if _is_silent(start, EVERY_S + LATER_S):
                _say(f"{what}: {time.monotonic() - start:.0f} s", say)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_silent(start: float, seconds: float) -> bool:
    """Returns whether nothing has been said for so many seconds, since `start` at the earliest."""
    return time.monotonic() - max(start, _said) >= seconds


def _say(text: str, say: Callable[[str], None]) -> None:
    global _said
    say(text)
    _said = time.monotonic()
