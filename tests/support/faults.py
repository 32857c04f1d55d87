"""Interrupts jobs, or takes their disk. A server forks a process for each; all share its imports.

`Server` starts the server. A child runs a config file as the command line does. It may send itself
signals a while after it has entered a phase for the n-th time, or run a command as it enters it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
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

WRITES = {
    "record": ("sdjax.io.run_record", "write"),
    "load": ("sdjax.training.loaded_model", "LoadedModel.load"),
    "metrics": ("sdjax.logs.writers", "Writer.write"),
    "answers": ("sdjax.training.evaluation", "jsonl"),
    "tensors": ("sdjax.models.files.shards", "write"),
    "tokenizer": ("sdjax.models.files.hf_export", "copy_tokenizer"),
    "adapters": ("sdjax.models.files.peft", "copy_tokenizer"),
    "template": ("sdjax.tokenizer", "Tokenizer.save_template"),
    "evaluations": ("sdjax.training.evaluation", "EvaluationHistory.close"),
    "scores": ("sdjax.jobs.evaluate_job", "_report"),
    "study": ("sdjax.jobs.study_job", "_report"),
    "coverage": ("sdjax.jobs.sweep_job", "_write"),
    "training": ("sdjax.jobs.train_job", "run"),
    "page": ("sdjax.jobs.report_job", "write_text"),
    "plot": ("sdjax.analysis.report.plots", "_plot"),
    "bench": ("sdjax.jobs.bench_job", "write_text"),
    "plan": ("sdjax.jobs.plan_job", "write_text"),
    "traces": ("sdjax.jobs.traces_job", "chunk"),
    "rows": ("sdjax.data.builder", "_rows"),
    "trace": ("sdjax.logs.profiler", "trace"),
}
"""Functions that write, or are called just before something is written."""


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

    def run(self, *args: str, log: Path, errors: Path | None = None, **kill: object) -> int:
        """Runs the arguments; returns the exit code, or minus the signal that ended the run.

        What it prints goes to `log`, and to `errors` what it prints to stderr; it then ends as
        Python does, which may print more. `kill`: the arguments of `_arm`.
        """
        assert self._process.stdin and self._process.stdout
        said = errors and str(errors)
        request = {"args": args, "log": str(log), "errors": said, "kill": kill}
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


def _child(args: list[str], log: str, errors: str | None, kill: dict) -> None:
    from sdjax.main import main

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if errors else 1, 2)
    if kill:
        _arm(**kill)
    code = main(args)
    if errors:
        sys.exit(code)
    sys.stdout.flush()
    # Ends as a process does after its threads, but without the clean-up of the server.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    os._exit(code)


def _arm(
    phase: str,
    occurrence: int,
    delay: float = 0.0,
    signals: Sequence[int] = (signal.SIGKILL,),
    command: str | None = None,
) -> None:
    """Makes this process send itself signals, `delay` seconds after it enters the phase.

    With a command it runs this in a shell in place of the signals, before the phase begins.
    """

    def fire() -> None:
        for number in signals:
            time.sleep(delay)
            os.kill(os.getpid(), number)

    def entered() -> None:
        if command is None:
            threading.Thread(target=fire, daemon=True).start()
        else:
            subprocess.run(command, shell=True, check=True)

    at(phase, occurrence, entered)


def at(
    phase: str,
    occurrence: int,
    action: Callable[[], None],
    set_attribute: Callable[[object, str, object], None] = setattr,
) -> None:
    """Makes this process call `action` when it enters the phase for the n-th time."""
    module, name = (PHASES | WRITES)[phase]
    owner = importlib.import_module(module)
    *classes, attribute = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, attribute)
    entered = [0]

    def called(*args: object, **kwargs: object) -> object:
        entered[0] += 1
        if entered[0] == occurrence:
            action()
        return function(*args, **kwargs)

    set_attribute(owner, attribute, called)
