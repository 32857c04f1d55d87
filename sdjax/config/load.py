"""Loads config files and applies command-line arguments to them.

A config file is Python that binds `config` to one of the job configs of sdjax.config. Arguments
such as `--optim.lr 1e-6` override its fields.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdjax import config as configs
from sdjax.config import packaged
from sdjax.errors import UserError
from sdjax.own_functions import MODULE

COMMON = {"", "max", "min", "num", "of", "at", "by", "from", "size", "is"}
"""Parts of names that say nothing about what a name means."""
BOOLEANS = (
    "A boolean field takes True or False, as in `--log.progress False`. Without a value it is "
    "True; with no_ before its name, as in `--log.no_progress`, it is False."
)
"""What --help says about boolean fields."""

OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "batch_size": "rollout.prompts_per_step",
    "num_generations": "rollout.group_size",
    "max_steps": "steps",
    "output_dir": "out",
    "model": "model.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "max_new_tokens": "rollout.max_completion_tokens",
    "max_completion_length": "rollout.max_completion_tokens",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "lora_rank": "lora.rank",
    "lora_r": "lora.rank",
    "target_modules": "lora.matrices",
    "resume_from_checkpoint": "resume",
    "per_device_train_batch_size": "rollout.prompts_per_step",
    "gradient_accumulation_steps": "optim.microbatch",
    "reward_funcs": "task.rewards",
    "eval_steps": "eval.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "load_best_model_at_end": "checkpoint.keep_best",
    "report_to": "log.to",
    "tensorboard": "log.to",
    "hub_model_id": "checkpoint.push_to",
    "push_to_hub": "checkpoint.push_to",
    "log_completions": "log.show_every",
}
"""Fields by the names that other programs give them."""


def job_classes() -> tuple[type, ...]:
    """Returns the config classes that a config file can bind."""
    return typing.get_args(configs.Job)


def load(file: str | Path) -> configs.Job:
    """Returns the config that a file, or package:NAME, binds to `config`.

    Raises UserError, with file and line, if the file cannot be read or run or if a value has a
    wrong type. Also raises it if the file does not bind `config` to a job config.
    """
    file = packaged.place(file)
    try:
        code = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such config file{_near_file(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable config file: {error}") from None
    module = types.ModuleType(MODULE)
    module.__file__ = str(file)
    sys.modules[MODULE] = module
    # A config may start from another file of its folder: from sdpo_qwen3_8b import config as base
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


def _near_file(file: Path) -> str:
    """Returns the end of a message: the file, or config of the package, most like a missing one."""
    here = [str(path) for path in (*Path().glob("*.py"), *Path("configs").glob("**/*.py"))]
    near = difflib.get_close_matches(str(file), here, n=1)
    near += filter(None, [packaged.meant(str(file), packaged.names())])
    return f"; perhaps you meant {near[0]}" if near else ""


def _explain(error: Exception, file: Path, module: types.ModuleType) -> str:
    """Returns one line: the file and line of an error, its cause, and the likeliest correction."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(file)]
    place = f"{file}, line {lines[-1]}" if lines else str(file)
    if isinstance(error, UserError):
        return f"{place}: {error}"
    for frame, _ in reversed(frames):
        # A value of a wrong type may fail in __post_init__, whose message does not name the field.
        section = frame.f_locals.get("self")
        if frame.f_code.co_name == "__post_init__" and dataclasses.is_dataclass(section):
            for problem in type_problems(section, f"{type(section).__name__}."):
                return f"{place}: {problem}"
    return f"{place}: {type(error).__name__}: {error}{_suggestion(error, module)}"


def _suggestion(error: Exception, module: types.ModuleType) -> str:
    """Returns the end of a message: the known name most like the unknown one, or an empty text."""
    message = str(error)
    if isinstance(error, NameError) and error.name:
        return _nearest(error.name, [*vars(module), *vars(configs), *dir(builtins)])
    if match := re.match(r"cannot import name '(\w+)' from '([\w.]+)'", message):
        return _nearest(match[1], dir(sys.modules.get(match[2])))
    if match := re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message
    ):
        cls = vars(module).get(match[1], vars(configs).get(match[1]))
        if dataclasses.is_dataclass(cls):
            return _nearest(match[2], [f.name for f in dataclasses.fields(cls)], " its fields are")
    return ""


def _nearest(word: str, names: Iterable[str], otherwise: str = "") -> str:
    """Returns the end of a message: the name most like `word`.

    If none is like it, lists all names after the text `otherwise`; without that, is empty.
    """
    names = list(names)
    near = difflib.get_close_matches(word, names, n=1) or _akin(word, names)
    if near:
        return f"; perhaps you meant {' or '.join(near)}"
    return f";{otherwise} {', '.join(names)}" if otherwise else ""


def _akin(word: str, names: Sequence[str]) -> list[str]:
    """Returns the names that abbreviate or complete a word: lr of learning_rate, steps of
    max_steps.

    Names may be paths. Those of the word's own section are preferred.
    """
    section, _, own = word.rpartition(".")
    parts = own.split("_")
    initials = "".join(part[:1] for part in parts)
    ends = {name: name.rpartition(".")[2] for name in names}
    found = [name for name in names if ends[name] == initials]
    found += [name for name in names if {*ends[name].split("_")} & {*parts} - COMMON]
    return ([n for n in found if n.rpartition(".")[0] == section] or found)[:3]


def type_problems(section: Any, prefix: str = "") -> Iterator[str]:
    """Yields one line per value of a config, or of its sections, that does not fit its type.

    This check is needed because dataclasses do not check their annotations: a config file may hold
    `demonstration="frist"`, which the command line would refuse.
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
    """Returns why a value does not fit the type of a section's field, or "" if it fits."""
    hint = _hints(section)[name]
    return "" if _fits(value, hint) else f"{name} is {value!r}: must be {_describe(hint)}"


@functools.cache  # because each call evaluates the text of every annotation
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
    if origin is Callable:
        return "a function"
    return str(hint) if origin else hint.__name__


def override(job: configs.Job, args: Sequence[str], *, prog: str) -> configs.Job | None:
    """Returns the config with the arguments applied, or None if they ask for help.

    A section keeps the class that the config file gave it, so arguments also override the fields
    that a task adds to TaskConfig. Raises UserError, with the nearest known name, for an unknown
    argument or a wrong value.
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
                args=with_boolean_values(args, set(boolean_fields(job))),
                prog=prog,
                description=f"{inspect.getdoc(type(job))}\n\n{BOOLEANS}",
                use_underscores=True,
                # Without AvoidSubcommands a section that may be None would become a subcommand.
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
    paths = [*field_paths(job), *configs.flat(configs.to_dict(job))]
    raise UserError(_one_line(printed.getvalue(), prog, paths))


def with_changes(job: configs.Job, change: Sequence[str], *, prog: str) -> configs.Job:
    """Returns the config with changes, each NAME=VALUE; raises UserError as `override` does."""
    pairs = [each.partition("=") for each in change]
    args = [part for name, _, value in pairs for part in (f"--{name}", value)]
    changed = override(job, args, prog=prog)
    if changed is None:
        raise UserError(f"change is {list(change)}: help is no field")
    return changed


def field_paths(section: Any, prefix: str = "") -> Iterator[str]:
    """Yields the path, "section.field", of every field of a config that holds a value."""
    for f in dataclasses.fields(section):
        value, name = getattr(section, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            yield from field_paths(value, f"{name}.")
        else:
            yield name


def boolean_fields(section: Any, prefix: str = "") -> Iterator[str]:
    """Yields the path, "section.field", of every boolean field of a config and of its sections."""
    cls: type = type(section)
    for f in dataclasses.fields(section):
        value, name = getattr(section, f.name), f"{prefix}{f.name}"
        if _hints(cls)[f.name] is bool:
            yield name
        for key, inner in value.items() if isinstance(value, dict) else ((None, value),):
            if dataclasses.is_dataclass(inner):
                yield from boolean_fields(inner, f"{name}." if key is None else f"{name}.{key}.")


def with_boolean_values(args: Sequence[str], fields: Collection[str]) -> list[str]:
    """Returns the arguments with a value after each boolean field.

    `--log.progress` becomes `--log.progress True`. `--log.no_progress`, also spelled
    `--no-log.progress`, becomes `--log.progress False`. `fields` are the paths of
    the boolean fields.
    """
    negated = {re.sub(r"(\w+)$", r"no_\1", path): path for path in fields}
    negated |= {f"no_{path}": path for path in fields}
    out = []
    for arg, following in zip(args, [*args[1:], "--"], strict=True):
        name = arg.removeprefix("--").replace("-", "_") if arg.startswith("--") else ""
        if name in negated:
            out += [f"--{negated[name]}", "False"]
        elif name in fields and following.startswith("-"):
            out += [arg, "True"]
        else:
            out.append(arg)
    return out


def _list_tables(section: Any) -> None:
    """Makes --help list the entries of a table where a field holds the name of one."""
    import tyro

    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            _list_tables(value)
        elif "table" in f.metadata:
            module, _, table = f.metadata["table"].partition(":")
            names = ", ".join(_entries(module, table))
            text = f"One of {names}: {table} of {module.replace('.', '/')}.py."
            type(section).__annotations__[f.name] = typing.Annotated[str, tyro.conf.arg(help=text)]


def _entries(module: str, table: str) -> list[str]:
    """Returns the names in a module's table, a dict.

    A module that is not imported yet has the entries of its source, which is read instead. To
    import it would load jax, and help would take seconds.
    """
    if module in sys.modules:
        return list(vars(sys.modules[module])[table])
    path = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys)):
                if name == table:
                    return [ast.literal_eval(key) for key in keys if key is not None]
    raise ValueError(f"{path}: no table {table}")


def _one_line(printed: str, prog: str, paths: Collection[str] = ()) -> str:
    """Returns the message and the suggested names of the text that tyro prints in a frame.

    `paths` are those of the config's fields and of the entries of its tables, one of which an
    unknown option may mean.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    inside = [line.strip(" │|") for line in plain.splitlines()[1:]]
    parts: list[list[str]] = [[]]
    for line in inside:
        if line and not line.strip("─-╭╮╰╯"):
            parts.append([])
        elif line:
            parts[-1].append(line)
    message, *others = [" ".join(part) for part in parts if part] or ["wrong arguments"]
    from_config = re.sub(r"^Error parsing (?!-)\S+ ", "", message)
    if from_config != message:  # a UserError of sdjax.config, which already names the remedy
        return from_config
    likely = [
        re.match(r"(?:Perhaps you meant|Arguments similar to \S+): (--\S+)", o) for o in others
    ]
    names = ", ".join(found[1].rstrip(",") for found in likely if found)
    if unknown := re.match(r"Unrecognized options: ([^\s,]+)(?:, ([^\s,]+))?", message):
        entries = [path for path in paths if path.startswith(f"{unknown[1].lstrip('-')}.")]
        entry = f"{unknown[1].lstrip('-')}.{unknown[2]}"
        near = difflib.get_close_matches(entry, entries, n=1)
        names = f"--{near[0]}" if near else names or _meant(unknown[1], paths)
    if wrong := re.match(r"Error parsing --(\S+): invalid literal for int\(\) .*: (.*)", message):
        message = f"{wrong[1]} is {wrong[2]}: must be a whole number, written in digits"
    remedy = f"perhaps you meant {names}" if names else f"{prog} --help lists every field"
    return f"{message.rstrip('.')}; {remedy}"


def _meant(option: str, paths: Collection[str]) -> str:
    """Returns the option that an unknown one seems to mean, as TRL or PEFT name it; or ""."""
    word = option.lstrip("-").partition("=")[0].replace("-", "_")
    last = word.rpartition(".")[2]
    found = [OTHER_NAMES[last]] if OTHER_NAMES.get(last) in paths else []
    found += [path for path in paths if path == word or path.rpartition(".")[2] == last]
    found += difflib.get_close_matches(word, paths, n=1) or _akin(word, list(paths))
    return f"--{found[0]}" if found else ""
