"""One worker of a Pool: a process that loads a function, and its fork that serves calls.

    python -m sdjax.graders.workers.worker MODULE:FUNCTION LIMIT_S MEMORY_MB ARGUMENTS_OF_A_FIRST_CALL|null

The fork reads calls from standard input and writes results to standard output, one JSON value a
line: a list of arguments in; {"value": ...}, {"late": true} or {"error": "..."} out. It announces
itself by {"ready": its process id}. When it dies another one is forked at once: what took long to
load is loaded once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from typing import Any


class _Late(BaseException):
    """The call's time is over. Not an Exception, so that no `except Exception` swallows it."""


def _raise_late(signum: int, frame: object) -> None:
    raise _Late


def _confine(memory_mb: int) -> None:
    memory = memory_mb * 2**20
    # macOS knows this limit, but does not let it be set.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _raise_late)


def _call(function: Any, arguments: list[Any], limit_s: float) -> dict[str, Any]:
    # SIGPROF keeps its default action: it ends a process that is stuck inside C code, where the
    # handler of SIGALRM cannot run, even if nobody is left to kill it.
    signal.setitimer(signal.ITIMER_PROF, limit_s + 2)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return {"value": function(*arguments)}
    except _Late:
        return {"late": True}
    except Exception as error:
        return {"error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _serve(function: Any, limit_s: float, channel: int) -> None:
    """Answers calls until standard input ends."""
    # The line feed in front ends what a predecessor may have left unfinished.
    message: dict[str, Any] = {"ready": os.getpid()}
    line = b"\n"
    with os.fdopen(0, "rb") as calls:
        while True:
            line += json.dumps(message).encode() + b"\n"
            while line:
                line = line[os.write(channel, line) :]
            call = calls.readline()
            if not call:
                return
            message = _call(function, json.loads(call), limit_s)


def main() -> None:
    """Forks a server, and another one whenever it dies, until standard input ends."""
    target, limit_s, memory_mb = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    warm_up = json.loads(sys.argv[4])
    # Nothing that a library prints may reach the channel.
    channel = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    if warm_up is not None:
        function(*warm_up)
    _confine(memory_mb)
    while True:
        server = os.fork()
        if server == 0:
            try:
                _serve(function, limit_s, channel)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        if os.waitpid(server, 0)[1] == 0:
            return


if __name__ == "__main__":
    main()
