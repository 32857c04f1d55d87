"""What a run says while it runs: metrics.jsonl, TensorBoard, rollouts.jsonl, a progress bar.

Only the process with `primary=True` writes; the others call the same methods to no effect. No jax.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sdjax import config
from sdjax.errors import WriteError, writing
from sdjax.io.files import to_json
from sdjax.logs import terminal


class Timers:
    """Seconds by name, added up within a step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time spent inside the `with` block to `name`, also if the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        """Returns {"time/NAME_s": seconds} since the last call, and starts again."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{name}_s": value for name, value in seconds.items()}


def truncate_after(path: Path, step: int) -> None:
    """Cuts a JSONL file before its first line of a later step, or that is not whole."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        kept = 0
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept += len(line)
        file.truncate(kept)


class Lines:
    """A JSONL file: one flushed line a row, each row with its "step".

    `after` is the step resumed from: lines up to and including it are kept. None or 0, where
    everything is done again, starts the file anew.
    """

    def __init__(self, path: Path, *, after: int | None) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if after:
                truncate_after(path, after)
            self._file = path.open("a" if after else "w", encoding="utf-8")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows."""
        for row in rows:
            line = to_json(row) + "\n"
            with writing(self._path):
                self._file.write(line)
        with writing(self._path):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()


class RolloutWriter:
    """rollouts.jsonl: one line for each completion, as the job describes it.

    Another thread makes and writes the lines, so that the next step need not wait; only where two
    steps' lines are still to be written does `write` wait for the older. What goes wrong there is
    raised by the next call. Use it in a `with` block: its end writes what was handed over.
    """

    def __init__(self, out: Path, *, primary: bool, after: int | None = None) -> None:
        """`after` is the step resumed from, None at the start."""
        self._path = out / "rollouts.jsonl"
        self._lines = Lines(self._path, after=after) if primary else None
        self._thread = ThreadPoolExecutor(1, "rollouts") if primary else None
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> RolloutWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends the completions of a step; `rows` is not read where nothing is written."""
        if self._thread:
            self._wait(1)
            self._waiting.append(self._thread.submit(self._write, step, rows))

    def flush(self) -> None:
        """Waits until all that was handed over is in the file."""
        self._wait(0)

    def close(self) -> None:
        """Writes all that was handed over and closes the file; a second call does nothing."""
        try:
            self.flush()
        finally:
            for part in (self._thread and self._thread.shutdown, self._lines and self._lines.close):
                if part:
                    part()
            self._thread = self._lines = None

    def _wait(self, most: int) -> None:
        """Waits until at most so many steps are still to be written."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            self._waiting.popleft().result()

    def _write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        assert self._lines
        try:
            self._lines.write({"step": step, **row} for row in rows)
        except WriteError as error:
            raise WriteError(f"{error}; log.rollouts_per_step makes it smaller") from error


class Writer:
    """Metrics of a run: a line of metrics.jsonl, TensorBoard and the terminal for each step.

    On a terminal (and with `log.progress`) a bar stands at the bottom; elsewhere every step is a
    plain line. Use it in a `with` block, so that the bar goes even if the run fails.
    """

    def __init__(
        self, out: Path, log: config.Log, *, steps: int, primary: bool, after: int | None = None
    ) -> None:
        """`steps` is the last step of the run; `after` the step resumed from, None at the start."""
        self._lines = Lines(out / "metrics.jsonl", after=after) if primary else None
        self._board = _Board(out / "tensorboard", after) if primary and log.tensorboard else None
        bar = log.progress and sys.stdout.isatty()
        self._terminal = (
            (terminal.Bar(steps, after) if bar else terminal.Plain(steps)) if primary else None
        )
        self._warned: set[str] = set()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the metrics of a step: numbers by "section/name", arrays of no axes too.

        The terminal shows those in SHOWN, and a line of those under "eval/" where there are any,
        but for what is split by grade.
        """
        numbers = {name: float(value) for name, value in values.items()}
        if self._lines:
            self._lines.write([{"step": step, **numbers}])
        if self._board:
            self._board.write(step, numbers)
        if self._terminal:
            self._terminal.step(step, terminal.shown(numbers))
            scores = [
                f"{name} {v:.4g}"
                for name, v in numbers.items()
                if name.startswith("eval/") and not name.endswith(("_correct", "_wrong"))
            ]
            if scores:
                self._terminal.say(f"step {step}  {'  '.join(scores)}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._terminal:
            self._terminal.say(text)

    def warn(self, step: int, warnings: Mapping[str, str]) -> None:
        """Prints a step's warnings, by kind, but for kinds that the step before had too."""
        for kind, text in warnings.items():
            if kind not in self._warned:
                self.say(f"warning: step {step}: {text}")
        self._warned = set(warnings)

    def close(self) -> None:
        """Closes the files and takes the bar away; a second call does nothing."""
        with ExitStack() as parts:
            for part in (self._lines, self._board, self._terminal):
                if part:
                    parts.callback(part.close)
        self._terminal = self._board = self._lines = None


class _Board:
    """A TensorBoard file. tensorboardX's own writer is a thread: what fails in it nobody hears."""

    def __init__(self, folder: Path, after: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
        if after:
            # TensorBoard then forgets what earlier files have from this step on.
            self._add(after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a step's numbers."""
        from tensorboardX.summary import scalar

        for name, number in numbers.items():
            self._add(step, summary=scalar(name, number))
        with writing(self._folder):
            self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self._folder):
            self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with writing(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
