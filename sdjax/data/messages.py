"""Reads prompts and conversations from rows: texts, or lists of messages.

A message is {"role", "content"}, or {"from", "value"} as in ShareGPT's rows.
What a prompt cannot carry is an error that names the row and the field: images, tools, tool calls
and names of speakers. Other fields of a message are named once for the file, as columns are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdjax.data.rows import RowError, checked_text, columns, field, text_field
from sdjax.records import Message

ROLES = ("system", "user", "assistant", "tool")
# The names that ShareGPT's rows, {"from": ..., "value": ...}, have beside those of ROLES.
SPEAKERS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "observation": "tool",
}  # fmt: skip
# Where data sets keep an assistant's thinking beside its answer.
THINKING = ("reasoning_content", "reasoning", "thinking")
# Fields of a message that say whether it is learned.
LEARNED = ("weight", "train", "loss")
# Columns, and fields of a message, that change what a conversation says.
UNREADABLE_COLUMNS = ("image", "images", "video", "videos", "audio", "audios", "tools", "functions")
UNREADABLE_FIELDS = ("tool_calls", "function_call", "tool_call_id", "name", *UNREADABLE_COLUMNS)


@dataclass(frozen=True)
class Turn:
    """A message, and whether its data set wants it learned (no field of LEARNED is 0 or false)."""

    message: Message
    learned: bool


def prompt(
    row: dict[str, Any], column: str, otherwise: Sequence[str], *, system: str = ""
) -> tuple[Message, ...]:
    """Returns the messages of a row's prompt; the last one is the user's or a tool's.

    `column` holds a text or a list of messages; if it is empty, the first of `otherwise` that the
    row has does. The column `system`, or else `system`, comes first unless the list has one.
    Raises RowError for a row without such a prompt.
    """
    refuse_unreadable(row)
    name = column or next((n for n in otherwise if row.get(n) is not None), None)
    if name is None:
        raise RowError(
            f"has the columns {columns(row)}; needs one of {', '.join(otherwise)}: name the "
            "question's column with task.question"
        )
    value = field(row, name)
    if not isinstance(value, list):
        messages: tuple[Message, ...] = (Message(role="user", content=text_field(row, name)),)
    else:
        messages = tuple(turn.message for turn in conversation(name, value))
        if messages[-1]["role"] not in ("user", "tool"):
            raise RowError(
                f"field '{name}' ends with a message of role {messages[-1]['role']!r}: a prompt "
                "ends with the user's"
            )
    return with_system(messages, row, system)


def with_system(
    messages: tuple[Message, ...], row: dict[str, Any], system: str = ""
) -> tuple[Message, ...]:
    """Returns the messages after the row's own system prompt, else after `system`, if any.

    Raises RowError if the column `system` and the messages' own system prompt differ.
    """
    own = text_field(row, "system") if row.get("system") not in (None, "") else ""
    if messages[0]["role"] == "system":
        if own and own != messages[0]["content"]:
            raise RowError("field 'system' differs from the system message of the conversation")
        return messages
    text = own or system
    return (Message(role="system", content=text), *messages) if text else messages


def refuse_unreadable(row: dict[str, Any]) -> None:
    """Raises RowError if a column holds images, tools or other things that no prompt can carry."""
    _refuse(row, UNREADABLE_COLUMNS, "")


def _refuse(fields: dict[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if name in fields and fields.get(name) not in (None, "", "[]", [], {}):
            remedy = "leave it out, or write what the model shall read into the text"
            raise RowError(f"{where}field '{name}' is not supported: {remedy}")


def conversation(name: str, value: Any) -> list[Turn]:
    """Returns the turns of the list of messages in field `name`; raises RowError for others."""
    if not isinstance(value, list):
        raise RowError(f"field '{name}' is {type(value).__name__}, not a list of messages")
    if not value:
        raise RowError(f"field '{name}' is an empty list")
    return [_turn(f"field '{name}', message {n}: ", m) for n, m in enumerate(value, 1)]


def _turn(where: str, message: Any) -> Turn:
    if not isinstance(message, dict):
        raise RowError(f"{where}is {type(message).__name__}, not an object")
    role, text = _role(where, message)
    _refuse(message, UNREADABLE_FIELDS, where)
    weights = {name: message.get(name) for name in LEARNED}
    for name, weight in weights.items():
        if weight not in (None, 0, 1):
            raise RowError(f"{where}'{name}' is {weight!r}: must be 0 or 1")
    thought, content = _thought(where, role, message), _content(where, text, message.get(text))
    if thought and content.lstrip().startswith("<think>"):
        raise RowError(f"{where}has its thinking twice: in '{text}' and beside it")
    return Turn(Message(role=role, content=thought + content), learned=0 not in weights.values())


def _role(where: str, message: dict[str, Any]) -> tuple[str, str]:
    """Returns a message's role and the name of the field that holds its text."""
    shared = message.get("role") is None and "from" in message
    name, text, known = ("from", "value", SPEAKERS) if shared else ("role", "content", {})
    role = message.get(name)
    if not isinstance(role, str):
        raise RowError(f"{where}'{name}' is not a text (it has {columns(message)})")
    if role not in ROLES and role not in known:
        raise RowError(f"{where}'{name}' is {role!r}: must be one of {', '.join([*known, *ROLES])}")
    return known.get(role, role), text


def _content(where: str, name: str, content: Any) -> str:
    """Returns the text of a message: a text, or a list of parts of type text."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict):
            kind = part.get("type", "text")
            if kind != "text":
                raise RowError(f"{where}'{name}' has a part of type {kind!r}: only text is read")
            part = part.get("text")
        if not isinstance(part, str):
            raise RowError(f"{where}'{name}' is not a text")
        texts.append(checked_text(part, f"{where}'{name}'") if part.strip() else part)
    return "".join(texts)


def _thought(where: str, role: str, message: dict[str, Any]) -> str:
    """Returns an assistant's thinking as it stands before its answer; empty without any."""
    found = {n: message.get(n) for n in THINKING if message.get(n) not in (None, "")}
    if not found:
        return ""
    (name, text), *others = found.items()
    # Some servers write one thought under two names.
    if role != "assistant" or any(other != text for _, other in others):
        raise RowError(f"{where}'{name}' belongs to no other field or role than the assistant's")
    thought = checked_text(text, f"{where}'{name}'").strip()
    return f"<think>\n{thought}\n</think>\n\n"
