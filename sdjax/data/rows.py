"""Converts rows of a data file into examples; error messages name the wrong row and field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sdjax.errors import UserError
from sdjax.records import Example

Converted = TypeVar("Converted")


class RowError(ValueError):
    """A row that cannot be used; the message names the field and the reason."""


@dataclass(frozen=True)
class Broken:
    """Replaces a row that could not be parsed."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """A row that was left out. `row` counts from 1."""

    file: str
    row: int
    reason: str


def text_field(row: dict[str, Any], *names: str) -> str:
    """Returns the text at row[names[0]][names[1]]…; raises RowError if there is none."""
    value: Any = row
    path = ".".join(names)
    for name in names:
        if not isinstance(value, dict) or name not in value or value[name] is None:
            known = "" if names[0] in row else f" (the columns are {columns(row)})"
            raise RowError(f"field '{path}' is missing{known}")
        value = value[name]
    if not isinstance(value, str):
        raise RowError(f"field '{path}' is {type(value).__name__}, not text")
    if not value.strip():
        raise RowError(f"field '{path}' is empty")
    return value


def columns(row: dict[str, Any], listed: int = 12) -> str:
    """Returns the names of a row's fields for a message, at most `listed` of them."""
    names = sorted(row)
    return ", ".join(names[:listed]) + (", ..." if len(names) > listed else "")


def convert_rows(
    file: str,
    rows: Iterable[tuple[int, dict[str, Any] | Broken]],
    convert: Callable[[dict[str, Any], int], Converted | None],
    on_bad_row: Literal["error", "skip"],
) -> tuple[list[Converted], tuple[Skipped, ...]]:
    """Returns the converted rows of a file, and the rows left out.

    `convert` takes a row and its number. It returns the converted row, or None to leave it out
    silently, and raises RowError for a wrong row. Raises UserError for the first wrong row if
    `on_bad_row` is "error", and for a file without a usable row.
    """
    converted: list[Converted] = []
    skipped: list[Skipped] = []
    count = 0
    for number, row in rows:
        count += 1
        try:
            if isinstance(row, Broken):
                raise RowError(row.reason)
            value = convert(row, number)
        except RowError as error:
            if on_bad_row == "error":
                raise UserError(
                    f"{file}:{number}: {error}; mend the row or set data.on_bad_row to 'skip'"
                ) from None
            skipped.append(Skipped(file, number, str(error)))
            continue
        if value is not None:
            converted.append(value)
    if not count:
        raise UserError(f"{file}: has no rows: name another file")
    if not converted:
        reason = f"; first: row {skipped[0].row}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{file}: none of its {count} rows is usable{reason}")
    return converted, tuple(skipped)


def unseen(
    held_out: Sequence[Example], train: Sequence[Example], file: str
) -> tuple[list[Example], tuple[Skipped, ...]]:
    """Returns the held-out examples whose user message is not in training, and the rows left out.

    The ids of held-out examples end in "-" and the number of their row.
    """
    known = {example.messages[-1]["content"] for example in train}
    kept, repeated = [], []
    for example in held_out:
        if example.messages[-1]["content"] in known:
            row = int(example.id.rpartition("-")[2])
            repeated.append(Skipped(file, row, "the same prompt is in the training set"))
        else:
            kept.append(example)
    return kept, tuple(repeated)


def distinct(examples: Sequence[Example], file: str) -> tuple[list[Example], tuple[Skipped, ...]]:
    """Returns the first example of each user message, and one note about the repeated ones."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.messages[-1]["content"], example)
    repeats = len(examples) - len(first)
    note = (Skipped(file, len(examples), f"{repeats} rows repeat an earlier prompt"),)
    return list(first.values()), note if repeats else ()
