"""Runs the job that a config file describes.

    python -m sdjax.main --config configs/quickstart.py --optim.lr 1e-6

The file is Python that binds `config` to one of the job configs of sdjax.config. Every other
argument overrides one of its fields. Heavy imports wait until the job starts.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from sdjax import config as configs
from sdjax.config.load import job_classes, load, override
from sdjax.errors import FULL, RESUME, TOO_LARGE, Stopped, TooLarge, UserError, WriteError
from sdjax.io import code_files, environment, lease, redact

PROG = "python -m sdjax.main"
LAUNCH_FLAGS = ("coordinator", "processes", "process")
WITHOUT_DEVICES = (configs.Prepare, configs.Traces, configs.Report)
"""Jobs that run in one process and use no devices."""


class _ToTerminal(logging.StreamHandler):
    """Writes to the stderr of the moment, because a progress bar replaces it."""

    @property
    def stream(self) -> TextIO:
        """Where the lines go."""
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job and returns the exit code.

    0: done. 2: a mistake that the user can mend, in one line on stderr. 3 (errors.TOO_LARGE): a
    planned training does not fit. 75 (errors.RESUME): a signal stopped the run after saving, and
    the same command with --resume goes on. 130: interrupted. Any other exception is a bug and
    passes through with its traceback.
    """
    redact.guard_terminal()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        code = _run(args, debug)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _ended(error, debug)
    except TooLarge as plan:
        print(f"sdjax: {plan}", file=sys.stderr)
        return TOO_LARGE
    except Stopped as stopped:
        command = resume_command(sys.argv[1:] if argv is None else argv)
        print(redact.redact(f"sdjax: stopped: {stopped}: {command}"), file=sys.stderr)
        return RESUME
    except KeyboardInterrupt:
        print("sdjax: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # Libraries write too: caches, temporary files.
        if error.errno not in FULL:
            raise
        return _ended(WriteError.of(error.filename or "a temporary file", error), debug)
    finally:
        lease.release_all()
        with suppress(WriteError):
            sys.stdout.flush()


def _run(args: Sequence[str], debug: bool) -> int:
    """Runs the job of the arguments, or prints what they ask for; returns the exit code."""
    flags, args = launch_flags(args)
    file, overrides = split(args)
    if file is None:
        return _without_config(args)
    job = override(load(Path(file)), overrides, prog=f"{PROG} --config {file}")
    if job is None:
        return 0
    logging.basicConfig(format="%(message)s", handlers=[_ToTerminal()])
    logging.getLogger("sdjax").setLevel(logging.INFO)
    if not debug:
        # Orbax and gcsfs also log what they raise, with tracebacks.
        for name in ("absl", "asyncio", "gcsfs"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    run = importlib.import_module(f"sdjax.jobs.{type(job).__name__.lower()}_job").run
    if isinstance(job, WITHOUT_DEVICES):
        run(job)
        return 0
    from sdjax.parallel import launch

    launch.skip_missing_tpu()
    settings, code = configs.to_public(job), code_files.checksums()
    with launch.together(launch.launch(flags), settings, code):
        run(job)
    return 0


def _ended(error: UserError, debug: bool) -> int:
    """Prints the line of an error and returns the exit code."""
    if debug:
        traceback.print_exc()
    print(f"sdjax: error: {redact.one_line(str(error))}", file=sys.stderr)
    return 2


def resume_command(argv: Sequence[str]) -> str:
    """Returns the command line, quoted for a shell, that goes on with the run of `argv`."""
    rest: list[str] = []
    for arg in argv:
        after_flag = rest and rest[-1] == "--resume" and arg in ("True", "False")
        if after_flag or re.fullmatch(r"--(no[-_])?resume(=.*)?", arg):
            arg = "--resume"
        rest.append(arg)
    return shlex.join([*PROG.split(), *(arg for arg in rest if arg != "--resume"), "--resume"])


def launch_flags(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the values of --coordinator, --processes and --process, and all other arguments."""
    flags: dict[str, str] = {}
    rest = []
    given = iter(args)
    for arg in given:
        name, equals, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in LAUNCH_FLAGS:
            flags[name] = value if equals else next(given, "")
        else:
            rest.append(arg)
    return flags, rest


def split(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the config file (None without one) and all other arguments."""
    file, rest = None, []
    given = iter(args)
    for arg in given:
        name, equals, value = arg.partition("=")
        if name != "--config":
            rest.append(arg)
            continue
        file = value if equals else next(given, "")
        if not file or file.startswith("--"):
            raise UserError("--config needs a file: --config configs/quickstart.py")
    return file, rest


def _without_config(args: Sequence[str]) -> int:
    """Prints the usage for --help, or the --version; raises UserError for anything else."""
    if "--version" in args:
        made = environment.versions()
        commit = f", commit {made['commit'][:12]}" if made["commit"] else ""
        changed = " (changed)" if made["dirty"] else ""
        print(f"sdjax {made['sdjax']}{commit}{changed}, jax {made['jax']}, Python {made['python']}")
        return 0
    if not {"--help", "-h"} & set(args):
        raise UserError(f"no config: {PROG} --config FILE, or --help")
    kinds = "\n".join(f"  {job.__name__:<10}{inspect.getdoc(job)}" for job in job_classes())
    print(
        f"usage: {PROG} --config FILE [--section.field value ...] [--debug]\n"
        "       [--coordinator HOST:PORT --processes N --process I]\n\n"
        "FILE is Python that binds `config` to one of these classes of sdjax.config:\n"
        f"{kinds}\n\n"
        "--config FILE --help lists every field with its default.\n"
        "--debug shows the traceback behind an error; --version alone shows the version.\n"
        "--coordinator, --processes and --process make this process I (from 0) of a run of N\n"
        "that meet at HOST:PORT of process 0. On a TPU slice, with Slurm, Open MPI or Kubernetes\n"
        "none is needed: run the same command on every host; --processes 1 runs alone."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
