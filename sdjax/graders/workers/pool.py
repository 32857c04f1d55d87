"""Worker processes for calls that may hang, die or eat memory.

`concurrent.futures` cannot end a call that hangs, and one dead worker breaks its pool; here each
call has a time limit, and a worker that exceeds it, or dies, is replaced.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# A worker ends a late call itself; if it cannot, it is killed this much later.
GRACE_S = 0.5
START_S = 120.0


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a call that gave none."""

    reason: Literal["late", "died", "error"]


class _Worker:
    """One process (see `worker`), its serving fork, and the call that is busy with."""

    def __init__(self, arguments: Sequence[str]) -> None:
        package_root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdjax.graders.workers.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The same hash seed in every worker: what it computes must not depend on which one.
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self.server: int | None = None
        self.call: int | None = None
        self.deadline = time.monotonic() + START_S
        self._received = b""

    def send(self, call: int, arguments: Sequence[Any], limit_s: float) -> None:
        """Hands over a call; raises OSError if the process is gone."""
        assert self.process.stdin is not None
        self.call = call
        self.deadline = time.monotonic() + limit_s + GRACE_S
        self.process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yields the messages that are complete; raises EOFError if the process is gone."""
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
        """Ends the serving fork; another one will announce itself."""
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
    the first call and stay; `close`, or the end of the program, ends them. `warm_up` are the
    arguments of a call that each worker makes before it counts time, to load what loads late.
    """

    def __init__(
        self,
        function: str,
        *,
        workers: int | None = None,
        limit_s: float = 3.0,
        memory_mb: int = 2048,
        warm_up: Sequence[Any] | None = None,
    ) -> None:
        self.limit_s = limit_s
        self._arguments = [function, str(limit_s), str(memory_mb), json.dumps(warm_up)]
        self._size = workers or os.cpu_count() or 1
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _kill_all, self._workers)

    def map(self, calls: Sequence[Sequence[Any]]) -> list[Any | Lost]:
        """Returns the result of each call, in order; Lost where there is none."""
        results: list[Any | Lost] = [Lost("died")] * len(calls)
        waiting = deque(range(len(calls)))
        with self._lock:
            while len(self._workers) < min(self._size, len(calls)):
                self._workers.append(self._start())
            while waiting or any(w.call is not None for w in self._workers):
                self._give_out(waiting, calls)
                self._take_in(results)
        return results

    def _start(self) -> _Worker:
        return _Worker(self._arguments)

    def _give_out(self, waiting: deque[int], calls: Sequence[Sequence[Any]]) -> None:
        for worker in self._workers:
            if waiting and worker.server is not None and worker.call is None:
                call = waiting.popleft()
                # A process that is gone is noticed when its output is read.
                with contextlib.suppress(OSError):
                    worker.send(call, calls[call], self.limit_s)

    def _take_in(self, results: list[Any | Lost]) -> None:
        """Waits for messages and deadlines, and sees to lost workers."""
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
                f"{shlex.join([sys.executable, '-m', 'sdjax.graders.workers.worker', *self._arguments])}"
            )
        if worker.call is not None:
            results[worker.call] = Lost("died")
        self._workers[self._workers.index(worker)] = self._start()


def _accept(worker: _Worker, message: dict[str, Any], results: list[Any | Lost]) -> None:
    """Takes a message in; one from a server that was given up is dropped."""
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
