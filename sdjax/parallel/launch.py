"""Joins several processes into one run, and ends them together.

The runtime is JAX's coordination service. It runs on process 0, joins the processes, and knows
which of them live. This module adds what a run also needs: the error or death of one process ends
all of them, with one line that says so.
"""

from __future__ import annotations

import glob
import importlib.util
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
from types import MappingProxyType
from typing import Any

import jax

from sdjax import config
from sdjax.errors import Stopped, UserError
from sdjax.io import code_files, redact

JOIN_S = 300
"""Longest wait in seconds for all processes to join; hosts of a slice start at different times."""
SILENT_S = 30
"""Seconds without a heartbeat after which a process counts as dead. Threads of JAX send heartbeats,
so a process that is busy for longer still lives."""
READ_S = 10
"""Longest wait in seconds of a failed process until the others have read its error."""
LEAVE_S = 1.0
"""Seconds in which a process that has left hears so. JAX aborts one whose service ends before."""
LOOK_S = 2.0
"""Seconds between two checks of which processes live."""
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The meeting point of a run's processes, and the index of this one; None: JAX finds it out."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None


def launch(given: Mapping[str, str]) -> Launch:
    """Returns the launch that flags describe, or else JAX's environment variables.

    `given` holds the flags by name without "--". Raises UserError for a missing or wrong value.
    """
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
    """Returns whether a launcher that JAX knows has started several processes, or may have done so.

    A Kubernetes pod, an interactive Slurm shell and a Cloud TPU VM may also run one process alone.
    """
    variables = os.environ
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    if "SLURM_STEP_NODELIST" in variables and _number("SLURM_NTASKS") > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in variables and "JOB_COMPLETION_INDEX" in variables:
        return True
    if "cpu" == variables.get("JAX_PLATFORMS"):
        return False
    return _has_tpu()


def _number(variable: str) -> int:
    """Returns the number in an environment variable, or 1; raises UserError for another text."""
    value = os.environ.get(variable, "1")
    if not value.isdecimal():
        raise UserError(f"{variable} is {value!r}: must be a whole number; unset it to run alone")
    return int(value)


def _has_tpu() -> bool:
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def skip_missing_tpu() -> None:
    """Lets jax use CPUs alone where libtpu is installed, but neither a TPU nor a GPU's plugin.

    Without this, libtpu looks for TPUs and prints errors. JAX_PLATFORMS has priority.
    """
    if os.environ.get("JAX_PLATFORMS") or _has_tpu() or importlib.util.find_spec("jax_plugins"):
        return
    if importlib.util.find_spec("libtpu"):
        jax.config.update("jax_platforms", "cpu")


@contextmanager
def together(
    given: Launch,
    settings: Mapping[str, Any],
    code: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[None]:
    """Joins the other processes of the run; all of them leave the block together.

    With one process it does nothing. Enter it before any use of a device. `settings` is the
    resolved config, `code` has the checksums of code_files. Both must be the same on all processes.
    An error in one process ends all others with its message and exit code. The death of a process
    ends them within SILENT_S + LOOK_S.
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
        _compare(settings, code)
        stopped = None
        try:
            yield
        except Stopped as error:  # all processes stop together
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

    # The timer ends the process first, because JAX would abort with a stack trace.
    timer = threading.Timer(JOIN_S, late)
    timer.daemon = True
    timer.start()
    # Without this option JAX aborts every process with a stack trace when one of them dies.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            given.coordinator,
            given.processes,
            given.process,
            local_device_ids=_gpus_of_the_node(),
            initialization_timeout=JOIN_S + 60,
            heartbeat_timeout_seconds=SILENT_S,
            # A coordinator comes with the other two values, so JAX has nothing to detect. Each
            # process then takes all devices of its host.
            cluster_detection_method="deactivate" if given.coordinator else None,
        )
    except (RuntimeError, ValueError) as error:
        if given.coordinator is None and "JOB_COMPLETION_INDEX" not in os.environ:
            if "should be defined" in str(error) or "must be defined" in str(error):
                return  # The processes were not launched together.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the processes cannot join at {where}: {reason}; give --coordinator HOST:PORT, "
            "--processes N and --process I, or --processes 1 to run alone"
        ) from error
    finally:
        timer.cancel()


def _gpus_of_the_node() -> list[int] | None:
    """Returns all GPUs of a node on which Slurm has started one task; None: those that JAX finds.

    JAX takes one GPU per task of a node, so it would leave the others idle.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if re.fullmatch(r"1(\(x\d+\))?", tasks) and gpus.isdecimal():
        return list(range(int(gpus)))
    return None


def _client() -> Any:
    from jax._src import distributed  # because there is no public way to the client

    return distributed.global_state.client


def _index() -> int:
    from jax._src import distributed

    return distributed.global_state.process_id


def _count() -> int:
    from jax._src import distributed

    return distributed.global_state.num_processes


def _end(message: str, code: int) -> None:
    """Ends this process at once, because its main thread may wait in a collective forever."""
    print(f"sdjax: error: {redact.one_line(message)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


class _Watch:
    """Runs two threads that end this process when another has failed or died."""

    def __init__(self) -> None:
        self._client = _client()
        self._leaving, self._failing = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=loop, daemon=True) for loop in (self._listen, self._look)
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        """Waits for the error message of another process."""
        while not self._leaving.is_set():
            try:
                failure = json.loads(self._client.blocking_key_value_get("sdjax/error", 2000))
            except jax.errors.JaxRuntimeError:
                # No process has failed yet. If the service is gone, JAX ends this process.
                time.sleep(0.1)
                continue
            if failure["process"] == _index():
                return
            # All processes find a mistake in the config at once, and each reports it itself.
            if not self._failing.wait(0.5):
                self._end_with(failure)
            return

    def _end_with(self, failure: dict[str, Any]) -> None:
        """Ends this process, but not before the failed process has left the service."""

        def depart() -> None:
            with suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"sdjax/read/{_index()}", "")
                if _index():
                    self._client.shutdown()
                else:
                    # A call waits for the same call of the other one, or until that one has left.
                    both = [0, failure["process"]]
                    while failure["process"] in self._client.get_live_nodes(both):
                        time.sleep(0.1)
                    time.sleep(LEAVE_S)

        leaving = threading.Thread(target=depart, daemon=True)
        leaving.start()
        # The failed process needs the service to leave, and process 0 holds the service.
        leaving.join(READ_S / 2 if _index() else READ_S)
        _end(failure["message"], failure["code"])

    def _look(self) -> None:
        """Checks which processes live; each check waits for the same check of all that live."""
        everyone = list(range(_count()))
        while not self._leaving.wait(LOOK_S):
            with suppress(jax.errors.JaxRuntimeError):
                alive = self._client.get_live_nodes(everyone)
                dead = [i for i in everyone if i not in alive]
                if dead and not self._leaving.is_set():
                    # The dead process may have failed, and _listen may get its message.
                    time.sleep(1.0)
                    _end(
                        f"process {' and '.join(map(str, dead))} of {len(everyone)} has died "
                        "without a word: see what it or its host printed last, and start all "
                        "again with --resume",
                        1,
                    )

    def failed(self, error: BaseException) -> None:
        """Sends the error to the other processes, and waits until they have read it."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely another process has left a collective. That process ends this one with a
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
        with suppress(jax.errors.JaxRuntimeError):  # another process failed first
            self._client.key_value_set("sdjax/error", words)
        until = time.monotonic() + READ_S
        while time.monotonic() < until:
            with suppress(jax.errors.JaxRuntimeError):
                if len(self._client.key_value_dir_get("sdjax/read")) >= _count() - 1:
                    break
            time.sleep(0.1)

    def leave(self) -> None:
        """Leaves the service. Process 0 leaves last, because the service runs on it."""
        self._leaving.set()
        if _index() == 0:
            others = threading.Thread(target=self._last_look, daemon=True)
            others.start()
            others.join(READ_S)
        with suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
        for thread in self._threads:
            thread.join(READ_S)

    def _last_look(self) -> None:
        with suppress(jax.errors.JaxRuntimeError):
            self._client.get_live_nodes(list(range(_count())))


def _compare(settings: Mapping[str, Any], code: Mapping[str, str]) -> None:
    """Raises UserError if this process's settings or files of code differ from process 0's.

    A file that only one of the two has loaded belongs to what started it, such as a debugger.
    """
    own = config.flat(redact.redacted(settings))
    if _index() == 0:
        _client().key_value_set("sdjax/same", json.dumps([own, dict(code)]))
        return
    first, code_of_first = json.loads(_client().blocking_key_value_get("sdjax/same", JOIN_S * 1000))
    for name in {**first, **own}:
        if first.get(name) != own.get(name):
            raise UserError(
                f"{name} is {own.get(name)!r} here and {first.get(name)!r} on process 0: give "
                "every process the same command"
            )
    other = [name for name in code if code_of_first.get(name, code[name]) != code[name]]
    if other:
        raise UserError(
            f"{code_files.listed(other)}: other code here than on process 0: give every host the "
            "same files"
        )
