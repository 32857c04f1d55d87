"""Interrupts trainings. A server forks a process for each, so that all share its imports.

`Server` starts the server. A child runs a config file as the command line does. It may send itself
signals a while after it has entered a phase for the n-th time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PHASES = {
    "rollout": ("sdjax.training.host_step", "sample_groups"),
    "update": ("sdjax.training.host_step", "take_updates"),
    "evaluation": ("sdjax.training.evaluation", "EvaluationHistory.measure"),
    "save": ("sdjax.learner.checkpoint", "Checkpoints.save"),
    "commit": ("sdjax.learner.checkpoint", "Checkpoints._seal"),
    "export": ("sdjax.training.loaded_model", "LoadedModel.export"),
}
"""Functions that begin a phase. A save goes on after its function has returned."""
OF_TRAININGS = ("rollout", "update")
"""Phases that a finetuning has not."""


class Server:
    """The process that forks the children."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import faults; faults.serve()"],
            cwd=here,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
            # Caches the many small programs too.
            | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, log: Path, **kill: object) -> int:
        """Runs the arguments; returns the exit code, or minus the signal that ended the run.

        What it prints goes to `log`. `kill`: phase, occurrence, delay (seconds) and signals.
        """
        assert self._process.stdin and self._process.stdout
        request = {"args": args, "log": str(log), "kill": kill}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def serve() -> None:
    """Reads requests, one line of JSON each, and prints exit codes."""
    import conftest  # noqa: F401  the flags of tests
    import runs  # noqa: F401
    import transformers

    import sdjax.main  # noqa: F401
    from sdjax.training import loop  # noqa: F401

    _ = transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer
    import jax._src.xla_bridge as bridge

    assert not bridge.backends_are_initialized(), "a fork would have its devices"
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            _child(**request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _child(args: list[str], log: str, kill: dict) -> None:
    from sdjax.main import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if kill:
        _arm(**kill)
    code = main(args)
    sys.stdout.flush()
    # Ends as a process does after its threads, but without the clean-up of the server.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    os._exit(code)


def _arm(
    phase: str, occurrence: int, delay: float, signals: tuple[int, ...] = (signal.SIGKILL,)
) -> None:
    """Makes this process send itself signals, `delay` seconds after it enters the phase."""
    module, _, name = PHASES[phase][0], None, PHASES[phase][1]
    owner = sys.modules[module] if module in sys.modules else __import__(module, fromlist=["_"])
    *classes, attribute = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, attribute)
    entered = [0]

    def fire() -> None:
        for number in signals:
            time.sleep(delay)
            os.kill(os.getpid(), number)

    def called(*args: object, **kwargs: object) -> object:
        entered[0] += 1
        if entered[0] == occurrence:
            threading.Thread(target=fire, daemon=True).start()
        return function(*args, **kwargs)

    setattr(owner, attribute, called)
