"""Reads conversations to imitate from rows of messages, or of prompts and completions, as texts.

A row has one of
    messages                a list of {"role", "content"} with a turn of the assistant in it
    conversations           the same, usually of {"from", "value"}: ShareGPT's rows
    prompt and completion   each a text or a list of messages; the completion is the assistant's
A column `system` comes before them. `reasoning_content` or `thinking` of a message stands before
its content, between <think> tags. A turn of the assistant whose `weight` is 0 is not learned, nor
one whose `train` or `loss` is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdjax.data.messages import Turn, conversation, refuse_unreadable, with_system
from sdjax.data.rows import RowError, Skipped, columns, convert_rows, field, text_field
from sdjax.data.sources import read_rows
from sdjax.records import Message

# The columns of whole conversations, in order of preference.
WHOLE = ("messages", "conversations")
# A tag at the end of a prompt, such as <think> or [THINK], its closing tag, and white space.
OPENING = re.compile(r"([<\[])([^<>\[\]\s/][^<>\[\]\s]{0,40})([>\]])(?:\s*(\1/\2\3))?(\s*)$")


@dataclass(frozen=True, kw_only=True)
class AnsweredTurn:
    """A conversation and the assistant's answer to it. `row` counts from 1."""

    row: int
    messages: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, kw_only=True)
class ConversationColumns:
    """The columns that hold conversations; an empty name stands for the usual one."""

    messages: str = ""
    prompt: str = ""
    completion: str = ""

    def turns(self, row: dict[str, Any]) -> list[Turn]:
        """Returns the turns of a row; raises RowError for a row without a conversation."""
        refuse_unreadable(row)
        if row.get("weight") not in (None, 1):
            raise RowError(f"field 'weight' is {row['weight']!r}: rows have no weights; remove it")
        pair_named = bool(self.prompt or self.completion)
        usual = () if pair_named else WHOLE
        whole = self.messages or next((n for n in usual if row.get(n) is not None), None)
        asked, said = self.prompt or "prompt", self.completion or "completion"
        if whole is not None:
            turns = conversation(whole, field(row, whole))
        elif row.get(asked) is None or row.get(said) is None:
            wanted = ", ".join([*usual, f"{asked} with {said}"])
            raise RowError(
                f"has none of {wanted} (the columns are {columns(row)}): name the columns with "
                "messages, or prompt and completion"
            )
        else:
            turns = [*_part(row, asked, "user"), *_part(row, said, "assistant")]
        before = with_system(tuple(turn.message for turn in turns), row)[: -len(turns)]
        return [*(Turn(message, learned=False) for message in before), *turns]


USUAL = ConversationColumns()


def load(
    source: str,
    *,
    turns: Literal["last", "all"],
    on_bad_row: Literal["error", "skip"],
    named: ConversationColumns = USUAL,
) -> tuple[list[AnsweredTurn], tuple[Skipped, ...]]:
    """Returns the demonstrations of a source (sdjax/data/sources.py) and the rows left out.

    `turns` selects the assistant's last turn in each row, or all turns, one demonstration each.
    Raises UserError for the first wrong row if `on_bad_row` is "error", and if no row is right.
    """

    def convert(row: dict[str, Any], number: int) -> list[AnsweredTurn]:
        demonstrations = list(_demonstrations(named.turns(row), number))
        if not demonstrations:
            raise RowError("has no turn of the assistant with a text to learn")
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
    left, name, right, closing, space = opened.groups()
    # White space may differ between the template and the data.
    wanted = re.escape(left + name + right) + (rf"\s*{re.escape(closing)}\s*" if closing else "")
    begun = re.match(rf"\s*{wanted}", completion)
    if begun is None:
        return completion
    space = "" if closing else space
    return completion[begun.end() :].removeprefix(space)


def _demonstrations(turns: Sequence[Turn], row: int) -> Iterator[AnsweredTurn]:
    messages = tuple(turn.message for turn in turns)
    for i, (message, turn) in enumerate(zip(messages, turns, strict=True)):
        if message["role"] == "assistant" and message["content"].strip() and turn.learned:
            if not i:
                raise RowError("begins with the assistant: nothing comes before its turn")
            yield AnsweredTurn(row=row, messages=messages[:i], completion=message["content"])


def _part(row: dict[str, Any], name: str, role: str) -> list[Turn]:
    """Returns the turns of a prompt or a completion, a text or a list of messages."""
    value = field(row, name)
    if isinstance(value, list):
        return conversation(name, value)
    return [Turn(Message(role=role, content=text_field(row, name)), learned=True)]
