"""Worker processes for calls that may hang, die or use too much memory.

`concurrent.futures` cannot end a call that hangs, and one dead worker breaks its pool. Here each
call has a time limit, and the pool replaces a worker that exceeds it or dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

LIMIT_S = 3.0
# A worker ends a late call itself. If it cannot, the pool kills it this much later.
GRACE_S = 0.5
START_S = 120.0


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a call that returned none."""

    reason: Literal["late", "died", "error"]


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sdjax.graders.workers.worker", *arguments]


class _Worker:
    """One process (see `worker`), the fork of it that serves, and the call that the fork runs."""

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], *, shown: bool
    ) -> None:
        package_root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            _command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.DEVNULL,
            # Every worker has the same hash seed, because a result must not depend on the worker.
            env=os.environ
            | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
            | environment,
            start_new_session=True,
        )
        self.server: int | None = None
        self.call: int | None = None
        self.deadline = time.monotonic() + START_S
        self._received = b""

    def send(self, call: int, arguments: Sequence[Any], limit_s: float) -> None:
        """Sends a call to the process; raises OSError if the process is gone."""
        assert self.process.stdin is not None
        self.call = call
        self.deadline = time.monotonic() + limit_s + GRACE_S
        self.process.stdin.write(json.dumps([limit_s, list(arguments)]).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yields the complete messages; raises EOFError if the process is gone."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 2**16)
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            # A killed server may leave half a message.
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def kill_server(self) -> None:
        """Ends the serving fork. The process forks another one, which announces itself."""
        assert self.server is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)
        self.server = self.call = None
        self.deadline = time.monotonic() + START_S

    def kill(self) -> None:
        """Ends process and fork, and waits until they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()


class Pool:
    """Calls a function of an importable module, "module:name", in worker processes.

    Arguments and results are JSON values, small enough for a pipe (a few kB). Workers start at
    the first call and stay. `close` or the end of the program ends them. `warm_up` holds the
    arguments of a call that each worker makes first, without a time limit, to load its imports.
    With `memory_mb` 0 a worker may use any memory and write files, and what it prints goes to
    standard error: the code of users does so. `environment` is added to that of the workers.
    """

    def __init__(
        self,
        function: str,
        *,
        workers: int | None = None,
        limit_s: float = LIMIT_S,
        memory_mb: int = 2048,
        warm_up: Sequence[Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.limit_s = limit_s
        self._arguments = [function, str(memory_mb), json.dumps(warm_up)]
        self._shown, self._environment = memory_mb == 0, dict(environment or {})
        self._size = workers or os.cpu_count() or 1
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _kill_all, self._workers)

    def map(
        self, calls: Sequence[Sequence[Any]], *, limit_s: float | None = None
    ) -> list[Any | Lost]:
        """Returns the result of each call, in order, and Lost for a call without a result.

        A call may take `limit_s` seconds, by default those of the pool.
        """
        results: list[Any | Lost] = [Lost("died")] * len(calls)
        limit_s = self.limit_s if limit_s is None else limit_s
        waiting = deque(range(len(calls)))
        with self._lock:
            while len(self._workers) < min(self._size, len(calls)):
                self._workers.append(self._start())
            while waiting or any(w.call is not None for w in self._workers):
                self._give_out(waiting, calls, limit_s)
                self._take_in(results)
        return results

    def renew(self) -> None:
        """Makes the next calls run in new forks, whose state no earlier call has changed."""
        with self._lock:
            for worker in self._workers:
                if worker.server is not None:
                    worker.kill_server()

    def _start(self) -> _Worker:
        return _Worker(self._arguments, self._environment, shown=self._shown)

    def _give_out(
        self, waiting: deque[int], calls: Sequence[Sequence[Any]], limit_s: float
    ) -> None:
        for worker in self._workers:
            if waiting and worker.server is not None and worker.call is None:
                call = waiting.popleft()
                # `_take_in` notices a dead process when it reads the output.
                with contextlib.suppress(OSError):
                    worker.send(call, calls[call], limit_s)

    def _take_in(self, results: list[Any | Lost]) -> None:
        """Waits for messages and deadlines, and replaces lost workers."""
        active = [w for w in self._workers if w.call is not None or w.server is None]
        with selectors.DefaultSelector() as selector:
            for worker in active:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
            patience = min(w.deadline for w in active) - time.monotonic()
            readable = [key.data for key, _ in selector.select(max(patience, 0))]
        for worker in readable:
            try:
                for message in worker.receive():
                    _accept(worker, message, results)
            except EOFError:
                self._replace(worker, results)
        for worker in active:
            late = time.monotonic() > worker.deadline
            if late and worker.call is not None:
                results[worker.call] = Lost("late")
                worker.kill_server()
            elif late and worker.server is None and worker in self._workers:
                self._replace(worker, results)

    def _replace(self, worker: _Worker, results: list[Any | Lost]) -> None:
        worker.kill()
        if worker.server is None:
            raise RuntimeError(
                "a grading worker does not start; see what this prints: "
                f"{shlex.join(_command(self._arguments))}"
            )
        if worker.call is not None:
            results[worker.call] = Lost("died")
        self._workers[self._workers.index(worker)] = self._start()


def shared(
    function: str, *, limit_s: float = LIMIT_S, warm_up: tuple[Any, ...] | None = None
) -> Pool:
    """Returns this process's one pool for a function, so that all tasks share its workers."""
    return _shared(function, limit_s, warm_up)


@cache
def _shared(function: str, limit_s: float, warm_up: tuple[Any, ...] | None) -> Pool:
    return Pool(function, limit_s=limit_s, warm_up=warm_up)


def _accept(worker: _Worker, message: dict[str, Any], results: list[Any | Lost]) -> None:
    """Stores the result in a message; ignores a message of a fork that was given up."""
    if "ready" in message:
        if worker.call is not None:
            results[worker.call] = Lost("died")
        worker.server, worker.call = message["ready"], None
    elif worker.call is not None:
        if "value" in message:
            results[worker.call] = message["value"]
        else:
            results[worker.call] = Lost("late" if "late" in message else "error")
        worker.call = None
