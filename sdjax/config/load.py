"""Config files as data: what one binds to `config`, checked, with arguments applied to it.

The file is Python that binds `config` to one of the job configs of sdjax.config; arguments
override its fields.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import difflib
import functools
import importlib
import io
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdjax import config as configs
from sdjax.errors import UserError

MODULE = "sdjax_config_file"
"""Name under which the config file is imported, so that classes defined in it can be found."""


def job_classes() -> tuple[type, ...]:
    """Returns the config classes that a config file can bind."""
    return typing.get_args(configs.Job)


def load(file: Path) -> configs.Job:
    """Returns what a config file binds to `config`; raises UserError where it does not."""
    try:
        code = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _nearest(str(file), (str(path) for path in Path("configs").glob("**/*.py")))
        raise UserError(f"{file}: no such config file{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable config file: {error}") from None
    module = types.ModuleType(MODULE)
    module.__file__ = str(file)
    sys.modules[MODULE] = module
    # So that a config can start from its neighbour: from sdpo_qwen3_8b import config as base
    folder = str(file.resolve().parent)
    sys.path.append(folder)
    try:
        exec(compile(code, str(file), "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise UserError(_explain(error, file, module)) from error
    finally:
        sys.path.remove(folder)
    jobs = ", ".join(job.__name__ for job in job_classes())
    if "config" not in vars(module):
        raise UserError(f"{file}: does not bind `config`: it must be one of {jobs} of sdjax.config")
    bound = vars(module)["config"]
    if not isinstance(bound, job_classes()):
        raise UserError(
            f"{file}: `config` is of type {type(bound).__name__}: must be one of {jobs} of "
            "sdjax.config"
        )
    for problem in type_problems(bound):
        raise UserError(f"{file}: {problem}")
    return typing.cast(configs.Job, bound)


def _explain(error: Exception, file: Path, module: types.ModuleType) -> str:
    """Returns one line: where the config file failed, why, and what may have been meant."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(file)]
    place = f"{file}, line {lines[-1]}" if lines else str(file)
    if isinstance(error, UserError):
        return f"{place}: {error}"
    for frame, _ in reversed(frames):
        # A value of a wrong type fails inside __post_init__, where the message has no field.
        made = frame.f_locals.get("self")
        if frame.f_code.co_name == "__post_init__" and dataclasses.is_dataclass(made):
            for problem in type_problems(made, f"{type(made).__name__}."):
                return f"{place}: {problem}"
    return f"{place}: {type(error).__name__}: {error}{_meant(error, module)}"


def _meant(error: Exception, module: types.ModuleType) -> str:
    message = str(error)
    if isinstance(error, NameError) and error.name:
        return _nearest(error.name, [*vars(module), *vars(configs), *dir(builtins)])
    if found := re.match(r"cannot import name '(\w+)' from '([\w.]+)'", message):
        return _nearest(found[1], dir(sys.modules.get(found[2])))
    if found := re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message
    ):
        cls = vars(module).get(found[1], vars(configs).get(found[1]))
        if dataclasses.is_dataclass(cls):
            return _nearest(found[2], [f.name for f in dataclasses.fields(cls)], " its fields are")
    return ""


def _nearest(word: str, names: Iterable[str], otherwise: str = "") -> str:
    """Returns the end of a message: the name most like `word`, or all names after `otherwise`."""
    names = list(names)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"; perhaps you meant {near[0]}"
    return f";{otherwise} {', '.join(names)}" if otherwise else ""


def type_problems(section: Any, prefix: str = "") -> Iterator[str]:
    """Yields what is wrong with the types of a config's values, section by section.

    Dataclasses do not check their annotations, and `demonstration="frist"` in a file is as wrong
    as on the command line.
    """
    for f in dataclasses.fields(section):
        value, name = getattr(section, f.name), f"{prefix}{f.name}"
        if problem := type_problem(type(section), f.name, value):
            yield prefix + problem
            continue
        for key, inner in value.items() if isinstance(value, dict) else ((None, value),):
            if dataclasses.is_dataclass(inner):
                yield from type_problems(inner, f"{name}." if key is None else f"{name}.{key}.")


def type_problem(section: type, name: str, value: Any) -> str:
    """Returns why a section's field cannot have a value, by its type; "" where it can."""
    hint = _hints(section)[name]
    return "" if _fits(value, hint) else f"{name} is {value!r}: must be {_describe(hint)}"


@functools.cache  # each evaluates the text of every annotation
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _fits(value: Any, hint: Any) -> bool:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in of)
    if origin is typing.Literal:
        return value in of
    if origin is tuple:
        each = of[:1] * len(value) if of[1:] == (...,) and isinstance(value, tuple) else of
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if origin is dict and isinstance(value, dict):
        return all(_fits(k, of[0]) and _fits(v, of[1]) for k, v in value.items())
    if hint is typing.Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in of)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, of))
    if hint is type(None):
        return "None"
    return str(hint) if origin else hint.__name__


def override(job: configs.Job, args: Sequence[str], *, prog: str) -> configs.Job | None:
    """Returns the config with the arguments applied; None if they asked for help.

    tyro keeps the class of every section, so a task's own fields are overridden like any other.
    """
    if not args:
        return job
    import tyro

    if {"-h", "--help"} & set(args):
        _list_tables(job)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                type(job),
                default=job,
                args=args,
                prog=prog,
                use_underscores=True,
                # A section that may be None is what the file makes it.
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
    raise UserError(_one_line(printed.getvalue(), prog))


def _list_tables(section: Any) -> None:
    """Makes --help list the entries of a table where a field holds the name of one.

    Only help does so, because tables stand next to their functions, whose import takes seconds.
    """
    import tyro

    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            _list_tables(value)
        elif "table" in f.metadata:
            module, _, table = f.metadata["table"].partition(":")
            names = ", ".join(vars(importlib.import_module(module))[table])
            text = f"One of {names}: {table} of {module.replace('.', '/')}.py."
            type(section).__annotations__[f.name] = typing.Annotated[str, tyro.conf.arg(help=text)]


def _one_line(printed: str, prog: str) -> str:
    """Returns the message and the suggested names out of tyro's framed text."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    inside = [line.strip(" │|") for line in plain.splitlines()[1:]]
    parts: list[list[str]] = [[]]
    for line in inside:
        if line and not line.strip("─-╭╮╰╯"):
            parts.append([])
        elif line:
            parts[-1].append(line)
    message, *others = [" ".join(part) for part in parts if part] or ["wrong arguments"]
    mended = re.sub(r"^Error parsing (?!-)\S+ ", "", message)
    if mended != message:  # a message of sdjax.config, which names its remedy
        return mended
    likely = [
        re.match(r"(?:Perhaps you meant|Arguments similar to \S+): (--\S+)", o) for o in others
    ]
    names = ", ".join(found[1].rstrip(",") for found in likely if found)
    remedy = f"perhaps you meant {names}" if names else f"{prog} --help lists every field"
    return f"{message.rstrip('.')}; {remedy}"
