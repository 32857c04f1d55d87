"""What a run shows on the terminal: a progress bar, two completions, the table at its end."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdjax.analysis import epistemic
from sdjax.io.redact import redact

QUESTION, ANSWER = 300, 1200
"""Most characters shown of a question and of a completion."""
LINES = 16
"""Most lines shown of either."""


@dataclass(frozen=True, kw_only=True)
class ShownCompletion:
    """A completion as the terminal shows it."""

    id: str
    """Of its example."""
    question: str
    text: str
    tokens: int
    cut_off: bool
    """Whether it ended at the limit of tokens."""
    reward: float
    correct: bool

    @property
    def head(self) -> str:
        """The line above its text."""
        grade = "right" if self.correct else "wrong"
        end = ", cut off" if self.cut_off else ""
        return f"{grade}  reward {self.reward:.4g}  {self.tokens} tokens{end}"


def frame(step: int, pair: Sequence[ShownCompletion], lexicon: str) -> Any:
    """Returns completions of a step in a frame of rich; epistemic words are bold."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts, asked = [], None
    for one in pair:
        if one.question != asked:
            asked = one.question
            parts.append(Text(f"{plain(one.id)}: {shortened(plain(asked), QUESTION)}", "dim"))
        parts.append(Text(one.head, "bold green" if one.correct else "bold red"))
        parts.append(
            Text.assemble(*((t, "bold yellow" if m else "") for t, m in marked(one, lexicon)))
        )
    return Panel(Group(*parts), title=f"step {step}", title_align="left")


def lines(step: int, pair: Sequence[ShownCompletion], lexicon: str) -> str:
    """Returns completions of a step as plain lines; epistemic words stand between asterisks."""
    out, asked = [], None
    for one in pair:
        if one.question != asked:
            asked = one.question
            out.append(f"step {step}, {plain(one.id)}: {shortened(plain(asked), QUESTION)}")
        text = "".join(f"*{t}*" if m else t for t, m in marked(one, lexicon))
        out += [f"  {one.head}", *(f"    {line}" for line in text.split("\n"))]
    return "\n".join(out)


def marked(one: ShownCompletion, lexicon: str) -> Iterator[tuple[str, bool]]:
    """Yields the parts of a completion's text, and whether each is an epistemic word."""
    text = shortened(plain(one.text), ANSWER)
    # Character by character, because lower() may change the length of a text.
    lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    words = epistemic.lexicon(lexicon).words.values()
    done = 0
    for start, end in sorted(span for word in words for span in word.spans(lowered)):
        if start >= done:
            yield text[done:start], False
            yield text[start:end], True
            done = end
    yield text[done:], False


def plain(text: str) -> str:
    """Returns the redacted text as a terminal can print it, with control characters escaped."""
    kept = []
    for c in redact(text).replace("\t", "    ").strip():
        if unicodedata.category(c) == "Zs":
            c = " "
        kept.append(c if c.isprintable() or c == "\n" else ascii(c)[1:-1])
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return "".join(kept).encode(encoding, "backslashreplace").decode(encoding)


def shortened(text: str, most: int) -> str:
    """Returns the beginning and the end of a text over `most` characters, or over LINES lines."""
    if len(text) > most:
        first, last = 2 * most // 3, most // 3
        text = f"{text[:first]} [... {len(text) - first - last} characters ...] {text[-last:]}"
    rows = text.split("\n")
    if len(rows) > LINES:
        first, last = 2 * LINES // 3, LINES // 3
        rows = [*rows[:first], f"[... {len(rows) - first - last} lines ...]", *rows[-last:]]
    return "\n".join(rows)


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

    def say(self, text: str, *, wrapped: bool = False) -> None:
        """Prints a line above the bar; `wrapped` breaks it between words, not for a command."""
        console = self._progress.console
        console.print(text, markup=False, highlight=False, soft_wrap=not wrapped)

    def show(self, step: int, pair: Sequence[ShownCompletion], lexicon: str) -> None:
        """Prints completions of a step in a frame above the bar."""
        self._progress.console.print(frame(step, pair, lexicon), highlight=False)

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
