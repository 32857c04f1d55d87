"""Writes metrics, warnings and rollouts, and passes metrics on to trackers and the terminal.

Only the process with `primary=True` writes. The others call the same methods, which do nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sdjax import config
from sdjax.errors import WriteError, writing
from sdjax.io import lease, progress
from sdjax.io.files import to_json
from sdjax.io.redact import one_line, redact
from sdjax.logs import terminal, trackers
from sdjax.logs.board import Board
from sdjax.logs.terminal import ShownCompletion

SHOWN = {
    "rollout/reward": "reward",
    "rollout/length": "length",
    "rollout/tokens_per_s": "tokens/s",
    "sft/loss": "loss",
    "sft/token_accuracy": "accuracy",
    "sft/tokens_per_s": "tokens/s",
}
"""The metrics of a step that the terminal shows, and their labels."""


class Timers:
    """Seconds by name; times of the same name add up."""

    def __init__(self, what: str = "", say: Callable[[str], None] | None = None) -> None:
        """Says with `say`, in a long block, how long it has taken, after `what` and its name."""
        self._seconds: dict[str, float] = {}
        self._what, self._say = what, say

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of the `with` block to `name`, also if the block raises."""
        start = time.perf_counter()
        try:
            with progress.waiting(self._what + name, self._say) if self._say else nullcontext():
                yield
        finally:
            spent = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        """Returns {"time/NAME_s": seconds} since the last call, and starts from zero."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{name}_s": value for name, value in seconds.items()}


def truncate_after(path: Path, step: int) -> None:
    """Cuts a JSONL file before its first line that is of a later step or not whole."""
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
    """A JSONL file with one line per row; each row has its "step"."""

    def __init__(self, path: Path, *, after: int | None) -> None:
        """Keeps the lines up to the step `after`; None empties the file."""
        self._path = path
        lease.make_folder(path.parent)
        with writing(path):
            if after is not None:
                truncate_after(path, after)
            self._file = path.open("w" if after is None else "a", encoding="utf-8")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows and flushes the file; raises WriteError if that fails."""
        lease.check()
        try:
            for row in rows:
                self._file.write(to_json(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError.of(self._path, error) from error

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()


class RolloutWriter:
    """rollouts.jsonl: one line per completion, as the job describes it.

    Another thread makes and writes the lines, so the next step does not wait. `write` waits only
    if the lines of two earlier steps are not written yet. It raises what went wrong in the thread.
    The end of a `with` block writes everything.
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
        """Hands over the completions of a step; reads no `rows` where nothing is written."""
        if self._thread:
            while self._waiting and (len(self._waiting) > 1 or self._waiting[0].done()):
                self._waiting.popleft().result()
            self._waiting.append(self._thread.submit(self._write, step, rows))

    def flush(self) -> None:
        """Waits until the file has everything that was handed over."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Writes everything and closes the file; a second call does nothing."""
        try:
            self.flush()
        finally:
            for part in (self._thread and self._thread.shutdown, self._lines and self._lines.close):
                if part:
                    part()
            self._thread = self._lines = None

    def _write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the lines of a step, in the thread."""
        assert self._lines
        try:
            self._lines.write({"step": step, **row} for row in rows)
        except WriteError as error:
            raise WriteError(f"{error}; log.rollouts_per_step makes it smaller") from error


class Writer:
    """Metrics of a run: a line of metrics.jsonl per step, the trackers and the terminal.

    warnings.jsonl has every warning and alarm of every step. It is empty if there was none.

    A terminal with `log.progress` shows a bar; elsewhere each step prints a line. Use it in a
    `with` block, so that the bar goes even if the run fails.
    """

    def __init__(
        self,
        out: Path,
        log: config.Log,
        *,
        steps: int,
        primary: bool,
        after: int | None = None,
        job: config.Train | config.SFT | None = None,
    ) -> None:
        """Opens the files and starts the trackers.

        Args:
            out: The run directory.
            log: What is written.
            steps: The last step of the run.
            primary: Whether this process writes.
            after: The last step that is written when a run resumes, -1 without one; None at the
                start.
            job: The config that trackers get, without secrets; None: they get none.
        """
        self._lines = Lines(out / "metrics.jsonl", after=after) if primary else None
        self._warnings = Lines(out / "warnings.jsonl", after=after) if primary else None
        self._log, self._lexicon = log, job.lexicon if job else "paper"
        public = config.to_public(job) if job else {}
        self._trackers: list[Board | trackers.Background] = []
        if primary and "tensorboard" in log.to:
            self._trackers.append(Board(out / "tensorboard", after, config.flat(public)))
        if primary:
            name = _run_name(job.out if job else str(out))
            self._trackers += trackers.start(log, out, name, public, after)
        self._terminal: terminal.Bar | _StepLines | None = None
        if primary:
            bar = log.progress and sys.stdout.isatty()
            self._terminal = terminal.Bar(steps, after) if bar else _StepLines(steps)
        self._warned: set[str] = set()
        self._sink_failed = False
        self._pair: Sequence[ShownCompletion] = ()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(ok=kind is None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the metrics of a step: numbers by "section/name", or arrays without axes.

        The terminal shows those in SHOWN. If there are any under "eval/", another line shows them,
        except those that are split by grade.
        """
        numbers = {name: float(value) for name, value in values.items()}
        if self._lines:
            self._lines.write([{"step": step, **numbers}])
            self._call_sink(step, numbers)
        for tracker in self._trackers:
            tracker.write(step, numbers)
        if self._terminal:
            shown = [f"{label} {numbers[k]:.4g}" for k, label in SHOWN.items() if k in numbers]
            self._terminal.step(step, "  ".join(shown))
            scores = [
                f"{name} {v:.4g}"
                for name, v in numbers.items()
                if name.startswith("eval/") and not name.endswith(("_correct", "_wrong"))
            ]
            if scores:
                self._terminal.say(f"step {step}  {'  '.join(scores)}", wrapped=True)
            if self._pair:
                self._terminal.show(step, self._pair, self._lexicon)
        self._pair = ()
        self._say_problems()

    def show(self, step: int, pair: Sequence[ShownCompletion]) -> None:
        """Keeps completions of a step, which `write` shows if log.show_every wants that."""
        every = self._log.show_every
        if every and (step == 1 or step % every == 0):
            self._pair = pair

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Passes on the first answers of an evaluation; `rows` are those of its answers.jsonl."""
        if not self._trackers or not self._log.samples:
            return
        first: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in rows:
            of_set = first.setdefault(row["set"], {})
            if len(of_set) < self._log.samples:
                of_set.setdefault(row["id"], row)
        chosen = [_sample(row) for of_set in first.values() for row in of_set.values()]
        for tracker in self._trackers:
            tracker.samples(step, chosen)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._terminal:
            self._terminal.say(text)

    def warn(self, step: int, warnings: Mapping[str, str]) -> None:
        """Writes the warnings of a step by kind, and prints those that the step before had not."""
        if self._warnings and warnings:
            rows = [{"step": step, "kind": kind, "text": text} for kind, text in warnings.items()]
            self._warnings.write(rows)
        for kind, text in warnings.items():
            if self._terminal and kind not in self._warned:
                self._terminal.say(f"warning: step {step}: {text}", wrapped=True)
        self._warned = set(warnings)

    def close(self, ok: bool = True) -> None:
        """Ends the trackers' runs, closes the files and takes the bar away.

        The run has failed unless `ok`. A second call does nothing.
        """
        with ExitStack() as parts:
            for part in (self._lines, self._warnings, self._terminal):
                if part:
                    parts.callback(part.close)
            parts.callback(self._say_problems)
            for tracker in self._trackers:
                parts.callback(tracker.close, ok)
        self._terminal = self._lines = self._warnings = None
        self._trackers = []

    def _call_sink(self, step: int, numbers: Mapping[str, float]) -> None:
        """Calls log.sink with its own copy; warns once if it fails."""
        if self._log.sink is None:
            return
        try:
            self._log.sink(step, dict(numbers))
        except Exception as error:
            if not self._sink_failed:
                self.say(f"warning: log.sink: {type(error).__name__}: {one_line(str(error))}")
            self._sink_failed = True

    def _say_problems(self) -> None:
        """Prints what went wrong in the trackers' threads."""
        for tracker in self._trackers:
            for problem in tracker.problems():
                self.say(f"warning: {problem}")


def _run_name(out: str) -> str:
    """Returns the name of a run in trackers: its directory, the last two parts of a long path."""
    parts = [part for part in redact(out).split("/") if part not in ("", ".", "runs")]
    inside = not out.startswith("/") and "://" not in out
    return "/".join(parts if inside else parts[-2:]) or "run"


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an answer for trackers: redacted texts that can be encoded, a grade."""
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    texts = {"set": row["set"], "id": row["id"], "question": (asked or [""])[-1]}
    texts["completion"] = row["completion"]
    for name, text in texts.items():
        whole = str(text).replace("\0", "\\0").encode("utf-8", "replace")
        texts[name] = redact(whole.decode("utf-8"))
    return {**texts, "reward": float(row["reward"]), "correct": bool(row["correct"])}


class _StepLines:
    """Prints a line per step, with the time left."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None

    def step(self, step: int, shown: str) -> None:
        """Prints what is shown of a step, unless it is empty."""
        if not shown:
            return
        now = time.monotonic()
        # The time left counts from the end of the first step, because that one compiles.
        self._first = self._first or (step, now)
        first, start = self._first
        left = "-"
        if step > first:
            left = _clock((now - start) / (step - first) * (self._steps - step))
        print(f"step {step}/{self._steps}  {shown}  left {left}", flush=True)

    def say(self, text: str, *, wrapped: bool = False) -> None:
        """Prints a line; one that Bar would break is not broken here."""
        print(text, flush=True)

    def show(self, step: int, pair: Sequence[ShownCompletion], lexicon: str) -> None:
        """Prints completions of a step, in a frame on a terminal."""
        if not sys.stdout.isatty():
            print(terminal.lines(step, pair, lexicon), flush=True)
            return
        from rich.console import Console

        Console().print(terminal.frame(step, pair, lexicon), highlight=False)

    def close(self) -> None:
        """Does nothing."""


def _clock(seconds: float) -> str:
    """Returns hours:minutes:seconds."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
