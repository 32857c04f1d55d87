"""Writes docs/reference/config.md from the config dataclasses and the docstrings of their fields.

    python dev/config_reference.py

A test fails while the committed page differs from the generated one.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdjax.config.load import BOOLEANS, job_classes

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "config.md"
COMMAND = "python dev/config_reference.py"
HEAD = f"""\
# Config reference

<!-- Generated from the docstrings in sdjax/config/ by `{COMMAND}`. -->

A config file is Python that binds `config` to one job class of `sdjax.config`. Arguments override
its fields: `--steps 20 --optim.lr 1e-6`. `--config FILE --help` prints the text of this page, with
the values of that file and the fields of its task.

{textwrap.fill(BOOLEANS, 100, break_on_hyphens=False)}

The jobs come first, with their fields and sections; the sections follow. The default of a section
is what the section lists, except for the values given with the job. [Tasks](../tasks.md) lists the
fields that each task adds.
"""


def page() -> str:
    """Returns the text of the page."""
    jobs = job_classes()
    holders: dict[type, list[str]] = {}
    for job in jobs:
        for section in dict.fromkeys(_sections(job)):
            holders.setdefault(section, []).append(f"[{job.__name__}](#{job.__name__.lower()})")
    parts = [HEAD, "## Jobs\n", *map(_class, jobs), "## Sections\n"]
    for section in sorted(holders.keys() - set(jobs), key=list(holders).index):
        parts.append(_class(section, f"Jobs: {', '.join(holders[section])}.\n\n"))
    return "\n".join(parts).rstrip() + "\n"


def _sections(cls: Any) -> Iterator[Any]:
    """Yields the dataclasses of a class's fields, each before the dataclasses inside it."""
    for hint in typing.get_type_hints(cls).values():
        for section in filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))):
            yield section
            yield from _sections(section)


def _class(cls: Any, more: str = "") -> str:
    docs, hints = field_docs(cls), typing.get_type_hints(cls)
    rows = [
        [
            f"`{f.name}`",
            _type(hints[f.name]),
            _default(f),
            docs.get(f.name) or _first(hints[f.name]),
        ]
        for f in dataclasses.fields(cls)
    ]
    head = [["field", "type", "default", "meaning"], ["---"] * 4]
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in head + rows)
    text = "\n\n".join(
        textwrap.fill(_prose(part), 100, break_on_hyphens=False)
        for part in inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    )
    return f"### {cls.__name__}\n\n{text}\n\n{more}{table}\n"


def _first(section: Any) -> str:
    """Returns the first paragraph of a section's docstring; empty for other types."""
    text = inspect.getdoc(section) if dataclasses.is_dataclass(section) else None
    return _prose((text or "").partition("\n\n")[0])


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns the docstring under each field of a dataclass, also of its bases, on one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = typing.cast(ast.ClassDef, tree).body
        for node, following in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                match following:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        docs[node.target.id] = _prose(text)
    return docs


def _type(hint: Any) -> str:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type, of))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in of)
    if origin is tuple:
        return f"any number of {_type(of[0])}" if of[1:] == (...,) else ", ".join(map(_type, of))
    if origin is dict:
        return f"names with {_type(of[1])}"
    name = hint.__name__
    if dataclasses.is_dataclass(hint):
        return f"[{name}](#{name.lower()})"
    return "None" if hint is type(None) else name


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return _value(field.default)
    if field.default_factory is dataclasses.MISSING:
        return "required"
    value: Any = field.default_factory()
    if not dataclasses.is_dataclass(value):
        return _value(value)
    cls: Any = type(value)
    plain = cls()
    return ", ".join(
        f"{f.name} {_value(getattr(value, f.name))}"
        for f in dataclasses.fields(value)
        if getattr(value, f.name) != getattr(plain, f.name)
    )


def _value(value: object) -> str:
    if isinstance(value, str):
        return f"`{value}`" if value and not re.search(r"\s", value) else f"`{value!r}`"
    if isinstance(value, tuple | dict):
        return ", ".join(map(_value, value)) or "none"
    return str(value)


def _prose(text: str) -> str:
    """Returns text on one line in which Markdown sees no HTML tag."""
    return " ".join(text.split()).replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
