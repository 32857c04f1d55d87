"""One worker of a Pool: a process that loads a function, and a fork of it that serves calls.

    python -m sdjax.graders.workers.worker MODULE:FUNCTION MEMORY_MB WARM_UP

WARM_UP is a JSON list, the arguments of a first call, or null. With MEMORY_MB 0 memory and files
have no limit, and what the function prints goes to standard error. The fork reads calls from
standard input and writes results to standard output, one JSON value per line. A call is [limit in
seconds, arguments]. A result is {"value": ...}, {"late": true} or {"error": "..."}. The fork first
sends {"ready": its process id}. When it dies, the process forks another one at once, because
forking keeps the loaded modules.
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
    """The time of the call is over. Not an Exception, so no `except Exception` catches it."""


def _raise_late(signum: int, frame: object) -> None:
    raise _Late


def _confine(memory_mb: int) -> None:
    if memory_mb:
        memory = memory_mb * 2**20
        # macOS has this limit but refuses to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _raise_late)


def restart_clock(limit_s: float) -> None:
    """Gives the running call `limit_s` seconds from now on; the pool's own limit stays."""
    # The handler of SIGALRM cannot run while C code runs. SIGPROF keeps its default action, which
    # ends such a process, even if the pool that would kill it is gone.
    signal.setitimer(signal.ITIMER_PROF, limit_s + 2)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def _call(function: Any, arguments: list[Any], limit_s: float) -> dict[str, Any]:
    restart_clock(limit_s)
    try:
        return {"value": function(*arguments)}
    except _Late:
        return {"late": True}
    except Exception as error:
        return {"error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _serve(function: Any, channel: int) -> None:
    """Answers calls until standard input ends, or nobody reads the results any more."""
    # The first line feed ends a line that an earlier fork may have left unfinished.
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
            limit_s, arguments = json.loads(call)
            message = _call(function, arguments, limit_s)


def main() -> None:
    """Forks a server, and another one whenever it dies, until standard input ends."""
    target, memory_mb, warm_up = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    # The channel must not receive what a library prints.
    channel = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY) if memory_mb else 2, 1)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    if warm_up is not None:
        function(*warm_up)
    _confine(memory_mb)
    while True:
        server = os.fork()
        if server == 0:
            try:
                # Where the caller died during a call, a new server could not answer either.
                with contextlib.suppress(BrokenPipeError):
                    _serve(function, channel)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        if os.waitpid(server, 0)[1] == 0:
            return


if __name__ == "__main__":
    main()
