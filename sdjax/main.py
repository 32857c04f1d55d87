"""Runs the job that a config file describes.

    sdjax --config configs/quickstart.py --optim.lr 1e-6

The file is Python that binds `config` to one of the job configs of sdjax.config. Every other
argument overrides one of its fields. `python -m sdjax.main` and `python -m sdjax` do the same as
the script `sdjax`. Heavy imports wait until the job starts.
"""

from __future__ import annotations

import difflib
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
from sdjax.config import packaged, starter
from sdjax.config.load import job_classes, load, override
from sdjax.errors import FULL, RESUME, TOO_LARGE, Stopped, TooLarge, UserError, WriteError
from sdjax.io import code_files, environment, lease, redact

LAUNCH_FLAGS = ("coordinator", "processes", "process")
ALONE = ("--help", "--version", "--config", "--debug", *(f"--{name}" for name in LAUNCH_FLAGS))
"""Options that are no fields of a config."""
COMMANDS = {
    "configs": "[PART]  lists the configs of the package, those with PART in their name",
    "init": "NAME       writes a config, a reward and rows, for you to edit",
}
"""What the program does beside running a job: arguments and effect, for the help."""
EXAMPLE = """\
A whole config, which trains Qwen3-0.6B on your questions (pip install 'sdjax[math]'):

  from sdjax.config import Model, Optim, Rollout, Train
  from sdjax.tasks.math import Math

  config = Train(
      out="runs/mine",
      task=Math(train="questions.jsonl", test="", held_out=50),  # rows: question, answer
      model=Model(path="Qwen/Qwen3-0.6B"),
      rollout=Rollout(prompts_per_step=16, group_size=8),
      optim=Optim(lr=1e-5),
  )
"""
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
    job = override(load(file), overrides, prog=f"{program()} --config {file}")
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


def program() -> str:
    """Returns the command that started this process, as its user types it."""
    script = Path(sys.argv[0])
    if script.stem == "sdjax":
        return "sdjax"
    package = script.stem == "__main__" and script.parent.name == "sdjax"
    return "python -m sdjax" if package else "python -m sdjax.main"


def resume_command(argv: Sequence[str]) -> str:
    """Returns the command line, quoted for a shell, that goes on with the run of `argv`."""
    rest: list[str] = []
    for arg in argv:
        after_flag = rest and rest[-1] == "--resume" and arg in ("True", "False")
        if after_flag or re.fullmatch(r"--(no[-_])?resume(=.*)?", arg):
            arg = "--resume"
        rest.append(arg)
    return shlex.join([*program().split(), *(arg for arg in rest if arg != "--resume"), "--resume"])


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
            raise UserError("--config needs a file: --config package:quickstart")
    return file, rest


def _without_config(args: Sequence[str]) -> int:
    """Does what needs no config: a command, --help or --version; raises UserError for the rest."""
    if {"--help", "-h"} & set(args):
        print(_help())
    elif "--version" in args:
        made = environment.versions()
        commit = f", commit {made['commit'][:12]}" if made["commit"] else ""
        changed = " (changed)" if made["dirty"] else ""
        print(f"sdjax {made['sdjax']}{commit}{changed}, jax {made['jax']}, Python {made['python']}")
    elif args[:1] == ["configs"]:
        print(packaged.listing(" ".join(args[1:])))
    elif args[:1] == ["init"]:
        _init(args[1:])
    else:
        raise UserError(_meant(args))
    return 0


def _init(names: Sequence[str]) -> None:
    """Writes the files that a user starts from, and prints them and the command to run them."""
    if len(names) != 1 or names[0].startswith("-"):
        raise UserError(f"init takes one name, such as: {program()} init mine")
    files = starter.write(names[0])
    config_file = min(files, key=lambda file: len(file.name))
    print(f"wrote {', '.join(map(str, files))}\nrun it: {program()} --config {config_file}")


def _meant(args: Sequence[str]) -> str:
    """Returns the likely meaning of a command line without a config, or how to give a config."""
    me = program()
    if args and not args[0].startswith("-"):
        near = [f"--config {args[0]}"] if args[0].endswith(".py") else []
        near += difflib.get_close_matches(args[0], COMMANDS, n=1)
        if file := packaged.meant(args[0], packaged.names()):
            near.append(f"--config {file}")
        known = f"the commands are {' and '.join(COMMANDS)}, and {me} --config FILE runs a job"
        meant = f"perhaps you meant {me} {near[0]}" if near else known
        return f"unknown command {args[0]!r}; {meant}"
    for option in (arg.partition("=")[0] for arg in args if arg.startswith("-")):
        near = difflib.get_close_matches(option, ALONE, n=1, cutoff=0.7)
        if near and option not in ALONE:
            return f"unknown option {option}; perhaps you meant {near[0]}"
    return f"no config: {me} --config FILE, or --help"


def _help() -> str:
    """Returns the text of --help without a config."""
    me = program()
    docs = {job.__name__: (inspect.getdoc(job) or "").split("\n\n")[0] for job in job_classes()}
    kinds = "\n".join(f"  {name:<10}{' '.join(text.split())}" for name, text in docs.items())
    commands = "\n".join(f"  {me} {name} {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {me} --config FILE [--section.field value ...] [--debug]\n"
        "       [--coordinator HOST:PORT --processes N --process I]\n\n"
        f"{commands}\n\n"
        "A first run, with a config of the package, and a second with yours:\n\n"
        f"  {me} --config package:quickstart\n"
        f"  {me} init mine\n"
        f"  {me} --config mine.py --steps 20 --optim.lr 1e-5 --log.progress False\n\n"
        f"{EXAMPLE}\n"
        "FILE is Python that binds `config` to one of these classes of sdjax.config:\n\n"
        f"{kinds}\n\n"
        "--config FILE --help lists every field with its default.\n"
        "--debug shows the traceback behind an error; --version alone shows the version.\n"
        "--coordinator, --processes and --process make this process I (from 0) of a run of N\n"
        "that meet at HOST:PORT of process 0. On a TPU slice, with Slurm, Open MPI or Kubernetes\n"
        "none is needed: run the same command on every host; --processes 1 runs alone."
    )


if __name__ == "__main__":
    sys.exit(main())
