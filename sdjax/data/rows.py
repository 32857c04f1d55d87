"""Converts rows of a data file into examples; error messages name the wrong row and field."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeVar

from sdjax.errors import UserError
from sdjax.io import progress
from sdjax.records import Example

Converted = TypeVar("Converted")
# Rows that are tried to find out whether the first one is wrong or all of them are.
TRIED = 100


class RowError(ValueError):
    """A row that cannot be used; the message names the field and the reason."""


@dataclass(frozen=True)
class Broken:
    """Replaces a row that could not be parsed."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """A row that was left out. `row` counts from 1; 0 stands for a remark on the whole file."""

    file: str
    row: int
    reason: str


class RowFields(dict[str, Any]):
    """A row, or an object inside one, that knows which of its fields were read.

    A field counts as read by `row[name]`, `row.get(name)`, `row.items()` or `row.values()`.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._read: set[str] = set()
        # The values that hold rows themselves.
        self._inner: dict[str, list[RowFields]] = {}
        for name, value in fields.items():
            if isinstance(value, dict):
                self._inner[name] = [RowFields(value)]
                super().__setitem__(name, self._inner[name][0])
            # The first item decides, because a list of numbers may be long.
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                watched = [RowFields(item) if isinstance(item, dict) else item for item in value]
                self._inner[name] = [item for item in watched if isinstance(item, RowFields)]
                super().__setitem__(name, watched)

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        # With an __iter__ of its own, dict(row) and {**row} read each field by row[name].
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a field, `default` if there is none."""
        self._read.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        """Returns names and values; all fields count as read."""
        self._read.update(self)
        return super().items()

    def values(self) -> Any:
        """Returns the values; all fields count as read."""
        self._read.update(self)
        return super().values()

    def unread(self) -> Iterator[str]:
        """Yields the path of each field that holds something and was not read.

        An object of which no field was read counts as read as a whole.
        """
        for name in self.keys() - self._read:
            if super().__getitem__(name) not in (None, "", [], {}):
                yield name
        for name in self._read & self._inner.keys():
            for inner in self._inner[name]:
                if inner._read:
                    yield from (f"{name}.{path}" for path in inner.unread())


def field(row: dict[str, Any], *names: str) -> Any:
    """Returns the value at row[names[0]][names[1]]…; raises RowError if there is none.

    One name that is no column may be such a path: "reward_model.ground_truth".
    """
    path = names[0] if len(names) == 1 else ".".join(names)
    if len(names) == 1 and path not in row:
        names = tuple(path.split("."))
    value: Any = row
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            known = "" if names[0] in row else f" (the columns are {columns(row)})"
            raise RowError(f"field '{path}' is missing{known}")
    return value


def text_field(row: dict[str, Any], *names: str) -> str:
    """Returns the text at row[names[0]][names[1]]…; raises RowError if there is none."""
    return checked_text(field(row, *names), f"field '{'.'.join(names)}'")


def checked_text(value: Any, what: str) -> str:
    """Returns `value`, a text that is not blank; raises RowError, which begins with `what`."""
    if not isinstance(value, str):
        raise RowError(f"{what} is {_kind(value)}, not text")
    if not value.strip():
        raise RowError(f"{what} is empty")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RowError(f"{what} holds half of a character (a lone surrogate)")
    return value


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else type(value).__name__


def answer_field(row: dict[str, Any], *names: str) -> str:
    """Returns the answer at row[names[0]][names[1]]… as the text that a grader reads.

    A number is written as Python writes it, a truth value as True or False, and a list as
    "[1, 2]". A list of one value is that value. Raises RowError for NaN, infinities, objects and
    empty or missing answers.
    """
    return _answer(field(row, *names), f"field '{'.'.join(names)}'")


def _answer(value: Any, what: str) -> str:
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise RowError(f"{what} is {value}: an answer must be finite")
        return str(value)
    if isinstance(value, list):
        if not value:
            raise RowError(f"{what} is an empty list")
        texts = [_answer(item, f"{what}, value {n}") for n, item in enumerate(value, 1)]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    if isinstance(value, str):
        return checked_text(value, what)
    raise RowError(f"{what} is {_kind(value)}, not text, a number or a list of them")


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
    silently, and raises RowError for a wrong row. Columns that `convert` did not read are named in
    a remark. Raises UserError for the first wrong row if `on_bad_row` is "error", and for a file
    without a usable row.
    """
    converted: list[Converted] = []
    skipped: list[Skipped] = []
    unread: Counter[str] = Counter()
    count = 0
    remaining = progress.told(rows, f"reading {file}", "rows")
    for number, row in remaining:
        count += 1
        try:
            value, names = _converted(row, number, convert)
        except RowError as error:
            if on_bad_row == "error":
                of_all = count == 1 and _none_usable(remaining, convert)
                remedy = of_all or "mend the row or set data.on_bad_row to 'skip'"
                raise UserError(f"{file}:{number}: {error}; {remedy}") from None
            skipped.append(Skipped(file, number, str(error)))
            continue
        if value is not None:
            converted.append(value)
            unread.update(names)
    if not count:
        raise UserError(f"{file}: has no rows: name another file")
    if not converted:
        reason = f"; first: row {skipped[0].row}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{file}: none of its {count} rows is usable{reason}")
    return converted, (*_remark(file, unread, len(converted)), *skipped)


def _converted(
    row: dict[str, Any] | Broken,
    number: int,
    convert: Callable[[dict[str, Any], int], Converted | None],
) -> tuple[Converted | None, set[str]]:
    """Returns the converted row, and the paths of its fields that were not read."""
    if isinstance(row, Broken):
        raise RowError(row.reason)
    fields = RowFields(row)
    value = convert(fields, number)
    return value, set(fields.unread())


def _none_usable(
    rows: Iterator[tuple[int, dict[str, Any] | Broken]],
    convert: Callable[[dict[str, Any], int], Any],
) -> str:
    """Returns the end of a message if no further row is usable either, else an empty text."""
    tried = 1
    for number, row in itertools.islice(rows, TRIED - 1):
        tried += 1
        try:
            _converted(row, number, convert)
        except RowError:
            continue
        return ""
    return f"none of the first {tried} rows is usable" if tried > 1 else ""


def _remark(file: str, unread: Counter[str], count: int) -> tuple[Skipped, ...]:
    """Returns the remark that names the columns of `count` rows that were not read, if any."""
    if not unread:
        return ()
    names = (n if unread[n] == count else f"{n} (in {unread[n]} rows)" for n in sorted(unread))
    return (Skipped(file, 0, f"columns not used: {', '.join(names)}"),)


def prompt_key(example: Example) -> tuple[str, ...]:
    """Returns texts that are the same for examples with the same messages, and only for them."""
    return tuple(text for m in example.messages for text in (m["role"], m["content"]))


def unseen(
    held_out: Sequence[Example], train: Sequence[Example], file: str
) -> tuple[list[Example], tuple[Skipped, ...]]:
    """Returns the held-out examples whose messages are not in training, and the rows left out.

    The ids of held-out examples end in "-" and the number of their row.
    """
    known = set(map(prompt_key, train))
    kept, repeated = [], []
    for example in held_out:
        if prompt_key(example) in known:
            row = int(example.id.rpartition("-")[2])
            repeated.append(Skipped(file, row, "the same prompt is in the training set"))
        else:
            kept.append(example)
    return kept, tuple(repeated)


def distinct(examples: Sequence[Example], file: str) -> tuple[list[Example], tuple[Skipped, ...]]:
    """Returns the first example of all that have the same messages, and a remark on the others."""
    first: dict[tuple[str, ...], Example] = {}
    for example in examples:
        first.setdefault(prompt_key(example), example)
    repeats = len(examples) - len(first)
    note = (Skipped(file, 0, f"{repeats} rows repeat an earlier prompt"),)
    return list(first.values()), note if repeats else ()


def split(
    examples: Sequence[Example], count: int, seed: int, file: str
) -> tuple[list[Example], list[Example]]:
    """Returns the training examples, and `count` held-out ones that share no prompt with them.

    Seed and prompt decide, so a held-out prompt stays one if the file's order changes. Raises
    UserError if more than half of the prompts would be held out.
    """
    first: dict[tuple[str, ...], Example] = {}
    for example in examples:
        first.setdefault(prompt_key(example), example)
    if count > len(first) // 2:
        raise UserError(
            f"task.held_out is {count}: without task.test so many are taken from the {len(first)} "
            f"prompts of {file}; take at most half of them, or 0 for no evaluation"
        )

    def rank(key: tuple[str, ...]) -> bytes:
        return hashlib.blake2b(repr((seed, key)).encode(), digest_size=16).digest()

    chosen = set(sorted(first, key=rank)[:count])
    held_out = [example for key, example in first.items() if key in chosen]
    return [e for e in examples if prompt_key(e) not in chosen], held_out
