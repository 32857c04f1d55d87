"""Several processes as one run: they join, and they end together.

The runtime is JAX's own: its coordination service, on process 0, joins the processes and sees
which of them live. Here is what a run needs on top: one process's error, or its death, ends all of
them with one line that says so.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax

from sdjax import config
from sdjax.errors import Stopped, UserError
from sdjax.io import redact

JOIN_S = 300
"""Longest wait for all processes to join; hosts of a slice do not start together."""
SILENT_S = 30
"""A process that sends no heartbeat for so long is dead. JAX's own threads send them: a process
that is busy for longer, in Python or not, still lives."""
TOLD_S = 10
"""Longest wait of a process that ends with an error for the others to have read it."""
LOOK_S = 2.0
"""Seconds between two looks at who lives."""
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where the processes of a run meet, and which of them this is; None: to be found out."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None


def launch(given: Mapping[str, str]) -> Launch:
    """Returns what the flags say, by name without "--", or else JAX's environment variables."""
    address, *numbers = (
        given.get(flag, os.environ.get(variable))
        for flag, variable in zip(("coordinator", "processes", "process"), VARIABLES, strict=True)
    )
    if numbers == ["1", None] or numbers == ["1", "0"]:
        return Launch(processes=1)
    if address is None and not given:
        return Launch()
    if address is None or None in numbers:
        missing = [
            f"--{flag}"
            for flag, value in zip(
                ("coordinator", "processes", "process"), (address, *numbers), strict=True
            )
            if value is None
        ]
        raise UserError(
            f"{' and '.join(missing)}: missing; several processes need --coordinator HOST:PORT of "
            "process 0, --processes N and --process I, from 0, or a launcher that JAX knows"
        )
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator is {address!r}: must be HOST:PORT of process 0")
    for flag, value in zip(("processes", "process"), numbers, strict=True):
        if not str(value).isdecimal():
            raise UserError(f"--{flag} is {value!r}: must be a whole number")
    count, index = (int(str(n)) for n in numbers)
    if index >= count:
        raise UserError(f"--process is {index}: must be under --processes ({count})")
    return Launch(coordinator=address, processes=count, process=index)


def _launched_together() -> bool:
    """Returns whether a launcher that JAX knows has started several processes, or may have.

    A Kubernetes pod, an interactive Slurm shell and a Cloud TPU VM are also used alone.
    """
    variables = os.environ
    if int(variables.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if "SLURM_STEP_NODELIST" in variables and int(variables.get("SLURM_NTASKS", 1)) > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in variables and "JOB_COMPLETION_INDEX" in variables:
        return True
    if "cpu" == variables.get("JAX_PLATFORMS"):
        return False
    return any(os.path.exists(f"/dev/{name}") for name in ("accel0", "vfio/0"))  # a TPU VM


@contextmanager
def together(given: Launch, settings: Mapping[str, Any]) -> Iterator[None]:
    """Joins the run's other processes, and makes the block's end that of all.

    Where there is one process it does nothing. `settings` must be the same on all of them: the
    resolved config. To be entered before any device is asked for. An error in one process ends all
    of them, the others with its message and exit code; so does a death, within SILENT_S and LOOK_S.
    """
    if given.processes == 1 or (given.coordinator is None and not _launched_together()):
        yield
        return
    _join(given)
    if _client() is None or _count() == 1:
        yield
        return
    if _index():
        logging.getLogger("sdjax").setLevel(logging.WARNING)
    watch = _Watch()
    try:
        _compare_settings(settings)
        stopped = None
        try:
            yield
        except Stopped as error:  # all of them, together
            stopped = error
        _client().wait_at_barrier("sdjax/end", 7 * 24 * 3600 * 1000)
        if stopped is not None:
            raise stopped
    except Stopped:
        raise
    except BaseException as error:
        watch.failed(error)
        raise
    finally:
        watch.leave()


def _join(given: Launch) -> None:
    where = given.coordinator or "the first host"

    def late() -> None:
        _end(
            f"not all processes have joined at {where} within {JOIN_S} s: start the same command "
            "on every host, and let every host reach that address",
            2,
        )

    # JAX itself would abort with a stack trace.
    timer = threading.Timer(JOIN_S, late)
    timer.daemon = True
    timer.start()
    # Otherwise JAX aborts every process, with a stack trace, when one of them has died.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            given.coordinator,
            given.processes,
            given.process,
            local_device_ids=_gpus_of_the_node(),
            initialization_timeout=JOIN_S + 60,
            heartbeat_timeout_seconds=SILENT_S,
            # With all three given there is nothing to find out, and one process has all devices.
            cluster_detection_method="deactivate" if given.coordinator else None,
        )
    except (RuntimeError, ValueError) as error:
        if given.coordinator is None and "JOB_COMPLETION_INDEX" not in os.environ:
            if "should be defined" in str(error) or "must be defined" in str(error):
                return  # not launched together after all
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the processes cannot join at {where}: {reason}; give --coordinator HOST:PORT, "
            "--processes N and --process I, or --processes 1 for a run of its own"
        ) from error
    finally:
        timer.cancel()


def _gpus_of_the_node() -> list[int] | None:
    """Returns all GPUs of a node on which Slurm has started one task; None: what JAX finds.

    JAX takes one for each task of a node, so it would leave the others idle.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if re.fullmatch(r"1(\(x\d+\))?", tasks) and gpus.isdecimal():
        return list(range(int(gpus)))
    return None


def _client() -> Any:
    from jax._src import distributed  # there is no public way to it

    return distributed.global_state.client


def _index() -> int:
    from jax._src import distributed

    return distributed.global_state.process_id


def _count() -> int:
    from jax._src import distributed

    return distributed.global_state.num_processes


def _end(message: str, code: int) -> None:
    """Ends this process at once: its main thread may wait in a collective forever."""
    print(f"sdjax: error: {redact.one_line(message)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


class _Watch:
    """Two threads that end this process when another has failed or died."""

    def __init__(self) -> None:
        self._client = _client()
        self._leaving, self._failing = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=loop, daemon=True) for loop in (self._listen, self._look)
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        """Waits for another process's last words."""
        while not self._leaving.is_set():
            try:
                told = json.loads(self._client.blocking_key_value_get("sdjax/error", 2000))
            except jax.errors.JaxRuntimeError:
                # Nobody has failed. Without the service there is nothing to wait for: JAX ends
                # this process.
                time.sleep(0.1)
                continue
            if told["process"] == _index():
                return
            # One mistake in the config is found by all at once: each says it for itself.
            if not self._failing.wait(0.5):
                self._end_as_told(told)
            return

    def _end_as_told(self, told: dict[str, Any]) -> None:
        """Ends this process without pulling the service from under the one that told."""

        def depart() -> None:
            with suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"sdjax/told/{_index()}", "")
                if _index():
                    self._client.shutdown()
                else:
                    self._client.get_live_nodes([0, told["process"]])  # until it has left

        leaving = threading.Thread(target=depart, daemon=True)
        leaving.start()
        # The one that told leaves as fast as its host lets it; process 0 holds what it leaves by.
        leaving.join(TOLD_S / 2 if _index() else TOLD_S)
        _end(told["message"], told["code"])

    def _look(self) -> None:
        """Looks who lives; each look waits for those of all that do."""
        everyone = list(range(_count()))
        while not self._leaving.wait(LOOK_S):
            with suppress(jax.errors.JaxRuntimeError):
                alive = self._client.get_live_nodes(everyone)
                dead = [i for i in everyone if i not in alive]
                if dead and not self._leaving.is_set():
                    # It may have failed, and said so.
                    time.sleep(1.0)
                    _end(
                        f"process {' and '.join(map(str, dead))} of {len(everyone)} has died "
                        "without a word: see what it or its host printed last, and start all "
                        "again with --resume",
                        1,
                    )

    def failed(self, error: BaseException) -> None:
        """Tells the others, and waits until they know."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely a collective that another process has left: it ends this one with a
            # better message.
            time.sleep(SILENT_S + 3 * LOOK_S)
        self._failing.set()
        code = 2 if isinstance(error, UserError) else 1
        text = redact.one_line(str(error))
        if isinstance(error, KeyboardInterrupt):
            code, text = 130, "interrupted"
        elif isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
        elif code == 1:
            text = f"{type(error).__name__}: {text[:300]}; its own output has the traceback"
        message = f"process {_index()} of {_count()}: {text}"
        words = json.dumps({"process": _index(), "message": message, "code": code})
        with suppress(jax.errors.JaxRuntimeError):  # another has failed too, and was first
            self._client.key_value_set("sdjax/error", words)
        until = time.monotonic() + TOLD_S
        while time.monotonic() < until:
            with suppress(jax.errors.JaxRuntimeError):
                if len(self._client.key_value_dir_get("sdjax/told")) >= _count() - 1:
                    break
            time.sleep(0.1)

    def leave(self) -> None:
        """Leaves the service; process 0, where it runs, last."""
        self._leaving.set()
        if _index() == 0:
            others = threading.Thread(target=self._last_look, daemon=True)
            others.start()
            others.join(TOLD_S)
        with suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
        for thread in self._threads:
            thread.join(TOLD_S)

    def _last_look(self) -> None:
        with suppress(jax.errors.JaxRuntimeError):
            self._client.get_live_nodes(list(range(_count())))


def _compare_settings(settings: Mapping[str, Any]) -> None:
    """Raises UserError where this process's settings are not those of process 0."""
    own = config.flat(redact.redacted(settings))
    if _index() == 0:
        _client().key_value_set("sdjax/settings", json.dumps(own))
        return
    first = json.loads(_client().blocking_key_value_get("sdjax/settings", JOIN_S * 1000))
    for name in {**first, **own}:
        if first.get(name) != own.get(name):
            raise UserError(
                f"{name} is {own.get(name)!r} here and {first.get(name)!r} on process 0: give "
                "every process the same command"
            )
