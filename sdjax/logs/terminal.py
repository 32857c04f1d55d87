"""What a run shows on the terminal: a line per step or a progress bar, and the closing table."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence

SHOWN = {
    "rollout/reward": "reward",
    "rollout/length": "length",
    "rollout/tokens_per_s": "tokens/s",
    "sft/loss": "loss",
    "sft/token_accuracy": "accuracy",
    "sft/tokens_per_s": "tokens/s",
}
"""What the progress bar shows of a step, where there is such a metric: its label."""


class Plain:
    """A line a step."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None

    def step(self, step: int, shown: str) -> None:
        if not shown:
            return
        now = time.monotonic()
        # Counted from the end of the first step, which compiles.
        self._first = self._first or (step, now)
        first, start = self._first
        left = "-"
        if step > first:
            left = _clock((now - start) / (step - first) * (self._steps - step))
        self.say(f"step {step}/{self._steps}  {shown}  left {left}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A bar at the bottom of the terminal; what is printed meanwhile appears above it."""

    def __init__(self, steps: int, after: int | None) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            speed_estimate_period=86_400,  # seconds; steps may be slower than rich's default, 30
        )
        self._task = self._progress.add_task("", total=steps, completed=after or 0)
        self._progress.start()

    def step(self, step: int, shown: str) -> None:
        self._progress.update(self._task, completed=step, description=shown or None)

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def shown(numbers: Mapping[str, float]) -> str:
    parts = [f"{label} {numbers[key]:.4g}" for key, label in SHOWN.items() if key in numbers]
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def closing_table(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Returns a table of (what, before, after) with the change; None is a measure not taken."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}.3f}"

    table = Table("", box=box.MARKDOWN)
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, before, after in rows:
        change = None if before is None or after is None else after - before
        table.add_row(Text(name), cell(before), cell(after), cell(change, "+"))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue().strip()
