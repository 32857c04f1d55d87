"""Writes the feedback on a program that fails, in the words of the SDPO paper's code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MAX_CHARACTERS = 2000
MAX_CASES = 2
INPUT_LINES, INPUT_WIDTH = 8, 250
DEBUG_LINES, DEBUG_WIDTH = 10, 300
OUTPUT_WIDTH = 250


class TestOutcome(Protocol):
    """The fields of a test's outcome that feedback shows."""

    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def input(self) -> str: ...  # noqa: D102
    @property
    def shown(self) -> str: ...  # noqa: D102
    @property
    def expected(self) -> str: ...  # noqa: D102
    @property
    def debug(self) -> str: ...  # noqa: D102


def write(outcomes: Sequence[TestOutcome], *, truncated: bool) -> str:
    """Returns the feedback on a program.

    It shows the first error. Without an error it shows the first time-out, else a missing program,
    else up to MAX_CASES wrong answers.
    """
    by_status: dict[str, list[tuple[int, TestOutcome]]] = {}
    for number, outcome in enumerate(outcomes, start=1):
        by_status.setdefault(outcome.status, []).append((number, outcome))
    if "error" in by_status:
        _, outcome = by_status["error"][0]
        text = f"Runtime Error\n{outcome.shown}\n\n{_last_input(outcome)}"
    elif "timeout" in by_status:
        _, outcome = by_status["timeout"][0]
        text = f"Time Limit Exceeded\n\n{_last_input(outcome)}"
    elif "format" in by_status:
        text = (
            "Truncated Attempt: Your previous response was too long and truncated because it "
            "reached the maximum response length. Try again with a shorter response."
            if truncated
            else "Incorrect Format: Put your code inside a ```python ... ``` block."
        )
    else:
        wrong = by_status.get("wrong", [])
        wrong.sort(key=lambda case: len(case[1].input) + len(case[1].shown))
        text = "\n\n".join(_case(number, outcome) for number, outcome in wrong[:MAX_CASES])
    return text.rstrip()[:MAX_CHARACTERS]


def _last_input(outcome: TestOutcome) -> str:
    text = f"Last Executed Input\n{_lines(outcome.input, INPUT_LINES, INPUT_WIDTH)}"
    return text + _debug(outcome)


def _case(number: int, outcome: TestOutcome) -> str:
    parts = (
        f"Test Case {number}: Wrong Answer",
        f"Input\n{_lines(outcome.input, INPUT_LINES, INPUT_WIDTH)}",
        f"Output\n{_cut(outcome.shown.strip(), OUTPUT_WIDTH)}",
        f"Expected\n{_cut(outcome.expected.strip(), OUTPUT_WIDTH)}",
    )
    return "\n\n".join(parts) + _debug(outcome)


def _debug(outcome: TestOutcome) -> str:
    if not outcome.debug.strip():
        return ""
    return f"\n\nDebug Output\n{_lines(outcome.debug, DEBUG_LINES, DEBUG_WIDTH)}"


def _lines(text: str, count: int, width: int) -> str:
    """Returns the first `count` lines of a text, each cut at `width`, and how many follow."""
    lines = text.strip().split("\n")
    kept = [_cut(line, width) for line in lines[:count]]
    if len(lines) > count:
        kept.append(f"... ({len(lines) - count} more lines)")
    return "\n".join(kept)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width] + "..."
