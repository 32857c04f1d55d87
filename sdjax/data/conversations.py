"""Reads conversations to imitate from rows of messages, or of prompts and completions, as texts.

A row has one of
    messages                a list of {"role", "content"} with a turn of the assistant in it
    prompt and completion   each a text or a list of messages; the completion is the assistant's
Other fields are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sdjax.data.rows import RowError, Skipped, columns, convert_rows, text_field
from sdjax.data.sources import read_rows
from sdjax.records import Message

# The beginning of a thought at the end of a prompt: its name, its closing tag, white space.
OPENING = re.compile(r"<(\w*(?:think|thought|reason)\w*)>(?:\s*(</\1>))?(\s*)$", re.I)


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A conversation and the assistant's answer to it. `row` counts from 1."""

    row: int
    messages: tuple[Message, ...]
    completion: str


def load(
    source: str, *, turns: Literal["last", "all"], on_bad_row: Literal["error", "skip"]
) -> tuple[list[Demonstration], tuple[Skipped, ...]]:
    """Returns the demonstrations of a source (sdjax/data/sources.py) and the rows left out.

    `turns` selects the assistant's last turn in each row, or all turns, one demonstration each.
    Raises UserError for the first wrong row if `on_bad_row` is "error", and if no row is right.
    """

    def convert(row: dict[str, Any], number: int) -> list[Demonstration]:
        demonstrations = list(_turns(_messages(row), number))
        if not demonstrations:
            raise RowError("has no turn of the assistant with a text")
        return demonstrations if turns == "all" else demonstrations[-1:]

    rows, skipped = convert_rows(source, read_rows(source), convert, on_bad_row)
    return [demonstration for of_row in rows for demonstration in of_row], skipped


def without_opening(prompt: str, completion: str) -> str:
    """Returns a completion without the beginning of a thought that ends its prompt already.

    Some chat templates end a prompt with <think> and a line end, or with an empty thought.
    """
    opened = OPENING.search(prompt)
    if opened is None:
        return completion
    # White space may differ between the template and the data.
    wanted = re.escape(f"<{opened[1]}>") + (rf"\s*{re.escape(opened[2])}\s*" if opened[2] else "")
    begun = re.match(rf"\s*{wanted}", completion)
    if begun is None:
        return completion
    space = "" if opened[2] else opened[3]
    return completion[begun.end() :].removeprefix(space)


def _turns(messages: tuple[Message, ...], row: int) -> Iterator[Demonstration]:
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and message["content"].strip():
            if not i:
                raise RowError("begins with the assistant: nothing comes before its turn")
            yield Demonstration(row=row, messages=messages[:i], completion=message["content"])


def _messages(row: dict[str, Any]) -> tuple[Message, ...]:
    if "messages" in row:
        return _conversation("messages", row["messages"])
    if "prompt" not in row or "completion" not in row:
        raise RowError(
            f"has neither messages nor prompt and completion (the columns are {columns(row)})"
        )
    parts = {
        name: (Message(role=role, content=text_field(row, name)),)
        if isinstance(row[name], str)
        else _conversation(name, row[name])
        for name, role in (("prompt", "user"), ("completion", "assistant"))
    }
    return parts["prompt"] + parts["completion"]


def _conversation(name: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"field '{name}' is {type(value).__name__}, not a list of messages")
    for number, message in enumerate(value, 1):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise RowError(f"field '{name}', message {number}: '{key}' is not a text")
    return tuple(Message(role=m["role"], content=m["content"]) for m in value)
