"""Names functions of users, so that configs hold texts and other processes find the functions.

The name is "module:function", or "FILE.py:function" for a function of a config file or a script.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sdjax.errors import UserError

MODULE = "sdjax_config_file"
"""Module name of the loaded config file, so that Python finds the classes that it defines."""

NAMED = re.compile(r"(?:[^:]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")
"""The names of functions: "module:function" and "FILE.py:function"."""

if TYPE_CHECKING:
    Function = Any  # a function, or its name
else:
    # A config turns functions into their names before anything reads its fields.
    Function = str


def is_named(value: str) -> bool:
    """Returns whether a text names a function of a module or file."""
    return NAMED.fullmatch(value) is not None


def check_rule(value: str, rules: Collection[str]) -> None:
    """Raises UserError unless task.grader is one of these rules, or names a function."""
    if value not in rules and not is_named(value):
        raise UserError(
            f"task.grader is {value!r}: must be one of {', '.join(rules)}, or a function of yours, "
            "module:function or FILE.py:function"
        )


def name_of(function: Any, field: str) -> str:
    """Returns the name of a function; a text stays as it is.

    Raises UserError, which begins with `field`, for a function that no other process would find.
    """
    if isinstance(function, str):
        return function
    if not callable(function):
        raise UserError(f"{field} is {function!r}: must be a function or its name, module:function")
    for module in _holders(function):
        for name in _names_in(module, function):
            return f"{_place(module, name, field)}:{name}"
    shown = getattr(function, "__qualname__", type(function).__name__)
    raise UserError(
        f"{field} is {shown}, which no module holds by name: define it with def at the top level "
        "of a file, or bind it to a name there, so that worker processes find it"
    )


def _holders(function: Any) -> Iterator[ModuleType]:
    """Yields the modules that may hold a function: its own, the config file, the script."""
    for name in (getattr(function, "__module__", None), MODULE, "__main__"):
        if isinstance(name, str) and name in sys.modules:
            yield sys.modules[name]


def _names_in(module: ModuleType, function: Any) -> Iterator[str]:
    """Yields the names by which a module holds a function, its own name first."""
    own = getattr(function, "__qualname__", "")
    found = [name for name, value in vars(module).items() if value is function]
    yield from sorted(found, key=lambda name: name != own)


def _place(module: ModuleType, name: str, field: str) -> str:
    """Returns the module's name, or that of its file if the module cannot be imported by name."""
    if module.__name__ not in (MODULE, "__main__"):
        return module.__name__
    file = getattr(module, "__file__", None)
    if not file:
        raise UserError(
            f"{field} is {name} of a notebook or a console, which worker processes cannot read: "
            f"write it into a file, such as rewards.py, and name it by rewards:{name}"
        )
    return Path(file).name


def paths() -> tuple[str, ...]:
    """Returns the folders in which named functions are searched, as absolute paths, in order.

    They are the folder of the config file, the working directory, and those of this process.
    """
    file = getattr(sys.modules.get(MODULE), "__file__", None)
    own = [str(Path(file).resolve().parent)] if file else []
    return tuple(dict.fromkeys([*own, os.getcwd(), *map(os.path.abspath, sys.path)]))


def names_of(weights: Mapping[Any, float], field: str) -> dict[str, float]:
    """Returns weights by the names of their functions.

    Raises UserError, which begins with `field`, if two have one name or a weight is no number.
    """
    for weight in weights.values():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"{field} has the weight {weight!r}: must be a number")
    named = [(name_of(function, field), float(weight)) for function, weight in weights.items()]
    if len(dict(named)) < len(named):
        raise UserError(f"{field} names a function twice: add its weights")
    return dict(named)
