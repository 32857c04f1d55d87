"""Sends a run's metrics, config and answers to W&B, trackio and MLflow.

Each tracker works in a thread. So a slow or broken one neither holds up nor ends the run, and
metrics.jsonl has every line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sdjax import config
from sdjax.errors import UserError
from sdjax.io.files import write_text
from sdjax.io.redact import one_line

PACKAGES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}
"""The package of each tracker; all but the first are extras of the same name."""
PROJECTS = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}
"""The variables that name a project where the config names none."""
KEYS = "trackers.json"
"""The file of a run directory that has the run's name in each tracker."""
PATIENCE_S = 60.0
"""Longest wait in seconds, at the end of a run, for what a tracker has not sent yet."""
HURRIED_S = 3.0
"""The same after a signal or an error, because a checkpoint may still have to be saved."""
_keys = threading.Lock()


class Tracker(Protocol):
    """What a tracker takes; each call may raise anything."""

    key: str
    """Names the run in the tracker."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the metrics of a step."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes answers of an evaluation, all with the same fields."""

    def close(self, ok: bool) -> None:
        """Ends the run, which has failed unless `ok`."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run when it starts."""

    out: Path
    name: str
    project: str
    config: Mapping[str, Any]
    """Nested values without secrets."""
    key: str | None
    """The run to go on with; None begins a new one."""


def check(log: config.Log) -> None:
    """Raises UserError for a tracker whose package is missing, or that has no key to log in."""
    for name in log.to:
        spec = importlib.util.find_spec(PACKAGES[name])
        # Without an origin it is a folder of that name, such as the one that W&B writes.
        if spec is None or spec.origin is None:
            raise UserError(
                f"log.to has {name!r}: it is not installed: pip install 'sdjax[{name}]'"
            )
    try:
        if "wandb" in log.to:
            _check_wandb()
        if "mlflow" in log.to:
            from mlflow import MlflowClient

            MlflowClient()  # fails without the package that its address needs
    except UserError:
        raise
    except Exception as error:  # the packages raise errors of many classes
        raise UserError(f"log.to is {log.to!r}: {type(error).__name__}: {error}") from None


def _check_wandb() -> None:
    """Raises UserError where W&B would ask for a key."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "log.to has 'wandb': there is no key to log in: run `wandb login`, or set "
            "WANDB_API_KEY, or WANDB_MODE=offline"
        )


class Wandb:
    """A run of W&B; WANDB_MODE=offline keeps it in the run directory."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._table = wandb.Table
        self.key = run.key or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=self.key,
            resume="allow",
            dir=None if os.environ.get("WANDB_DIR") else str(run.out),
            config=dict(run.config),
            reinit="create_new",
            # Without what may hold secrets: the command, the repository's address, the output.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                finish_timeout=0.8 * PATIENCE_S,
                finish_timeout_raises=True,
            ),
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a step; W&B drops one that it has from before the run was resumed."""
        self._run.log(dict(numbers), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table."""
        names, cells = _table(rows)
        self._run.log({"samples": self._table(columns=names, data=cells)}, step=step)

    def close(self, ok: bool) -> None:
        """Waits until everything is sent."""
        self._run.finish(exit_code=0 if ok else 1)


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Returns the columns and the cells of a table, which W&B and trackio take alike."""
    return list(rows[0]), [list(row.values()) for row in rows]


class Trackio:
    """A run of trackio, in its local database or, with TRACKIO_SPACE_ID, in a Space."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._table = trackio.Table
        self.key = run.key or run.name
        self._run = trackio.init(
            project=run.project,
            name=self.key,
            config=dict(run.config),
            resume="allow" if run.key else "never",
            embed=False,
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a step."""
        self._run.log(dict(numbers), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table."""
        names, cells = _table(rows)
        self._run.log({"samples": self._table(columns=names, data=cells)}, step=step)

    def close(self, ok: bool) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if run.key:
            self.key = run.key
            self._client.update_run(self.key, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        experiment = (found and found.experiment_id) or self._client.create_experiment(run.project)
        self.key = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(k, str(v)[:6000]) for k, v in config.flat(dict(run.config)).items()]
        for start in range(0, len(params), 100):  # the most that MLflow takes at a time
            self._client.log_batch(self.key, params=params[start : start + 100])

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a step; MLflow refuses some characters, such as the @ of eval/avg@4."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w./: -]", "_", n.replace("@", "_at_")): v for n, v in numbers.items()}
        self._client.log_batch(
            self.key, metrics=[Metric(n, v, now, step) for n, v in named.items()]
        )

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Stores a page with the answers."""
        parts = ["\n\n".join(f"**{k}**: {v}" for k, v in row.items()) for row in rows]
        text = "\n\n---\n\n".join(parts) + "\n"
        self._client.log_text(self.key, text, f"samples/{step:06d}.md")

    def close(self, ok: bool) -> None:
        """Tells how the run ended."""
        self._client.set_terminated(self.key, "FINISHED" if ok else "FAILED")


MAKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


class Background:
    """A tracker that works in a thread: every call returns at once.

    What goes wrong is kept for `problems`: the first failure, and at the end the number of lines
    that did not arrive.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._put = self._done = self._failed = 0
        # A daemon, so that a tracker that hangs does not keep the program from ending.
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True, name=name)
        self._thread.start()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hands over the metrics of a step."""
        self._put += 1
        self._queue.put(("write", (step, dict(numbers))))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hands over answers of an evaluation."""
        self._queue.put(("samples", (step, list(rows))))

    def close(self, ok: bool) -> None:
        """Ends the tracker's run; waits for PATIENCE_S at most, or HURRIED_S unless `ok`."""
        self._queue.put(("close", (ok,)))
        patience = PATIENCE_S if ok else HURRIED_S
        self._thread.join(patience)
        late = self._thread.is_alive()
        missing = self._put - self._done if late else self._failed
        if missing:
            why = f" within {patience:g} s" if late else ""
            self._problems.put(f"{missing} of {self._put} lines have not arrived{why}")
        elif late:
            self._problems.put(f"it has not finished within {patience:g} s")

    def problems(self) -> Iterator[str]:
        """Yields a line for each problem since the last call."""
        while not self._problems.empty():
            text = self._problems.get()
            yield f"{self._name}: {text}; metrics.jsonl has every line"

    def _work(self, make: Callable[[], Tracker]) -> None:
        """Makes the tracker and passes everything on to it, until it is closed."""
        tracker = None
        try:
            tracker = make()
        except BaseException as error:  # W&B also raises SystemExit
            self._fail(error)
        method = ""
        while method != "close":
            method, given = self._queue.get()
            try:
                if tracker is not None:
                    getattr(tracker, method)(*given)
                elif method == "write":
                    self._failed += 1
            except BaseException as error:
                self._failed += method == "write"
                self._fail(error)
            self._done += method == "write"

    def _fail(self, error: BaseException) -> None:
        """Keeps the first failure."""
        if not hasattr(self, "_told"):
            self._told = True
            text = one_line(str(error))[:300]
            self._problems.put(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def start(
    log: config.Log, out: Path, name: str, public: Mapping[str, Any], after: int | None
) -> list[Background]:
    """Returns the trackers of `log.to`, except TensorBoard's file.

    Args:
        log: Names them.
        out: The run directory.
        name: The run's name in the trackers.
        public: The config without secrets.
        after: The last step written before, whose run in each tracker goes on. None and -1 begin
            new ones.
    """
    keys = _read(out / KEYS) if after is not None and after >= 0 else {}

    def make(kind: str, project: str) -> Tracker:
        run = TrackedRun(out=out, name=name, project=project, config=public, key=keys.get(kind))
        tracker = MAKERS[kind](run)
        with _keys:
            write_text(out / KEYS, json.dumps(_read(out / KEYS) | {kind: tracker.key}) + "\n")
        return tracker

    started = []
    for kind in dict.fromkeys(log.to):
        if kind in MAKERS:
            project = log.project or os.environ.get(PROJECTS.get(kind, "")) or "sdjax"
            started.append(Background(kind, lambda kind=kind, at=project: make(kind, at)))  # type: ignore[misc]
    return started


def _read(file: Path) -> dict[str, str]:
    """Returns the names of a run in its trackers; {} without them."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
