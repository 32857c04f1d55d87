"""A progress bar for the terminal, and the table at the end of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence


class Bar:
    """A bar at the bottom of the terminal; text that is printed meanwhile appears above it."""

    def __init__(self, steps: int, after: int | None) -> None:
        """`steps` is the last step of the run; `after` is as in writers.Writer."""
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
            # In seconds, because one step may take longer than rich's default of 30.
            speed_estimate_period=86_400,
        )
        self._task = self._progress.add_task("", total=steps, completed=max(after or 0, 0))
        self._progress.start()

    def step(self, step: int, shown: str) -> None:
        """Moves the bar to a step; `shown` replaces the text beside it unless it is empty."""
        self._progress.update(self._task, completed=step, description=shown or None)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        self._progress.stop()


def closing_table(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Returns a Markdown table of rows (name, before, after), with the change.

    None stands for a figure that was not measured.
    """
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
