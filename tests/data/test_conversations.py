"""Rows of conversations: which columns and fields are read, and what is refused."""

import json

import pytest

from sdjax.data import conversations
from sdjax.data.conversations import ConversationColumns
from sdjax.errors import UserError

ASK = {"role": "user", "content": "q"}
SAY = {"role": "assistant", "content": "a"}
HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}
MORE = {"role": "user", "content": "r"}
LAST = {"role": "assistant", "content": "b"}


def load(tmp_path, *rows, turns="all", **fields):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return conversations.load(str(file), turns=turns, on_bad_row="error", **fields)


def said(found):
    return [([m["content"] for m in d.messages], d.completion) for d in found]


@pytest.mark.parametrize(
    ("row", "expected", "remark"),
    [
        ({"messages": [ASK, SAY], "id": 3}, [(["q"], "a")], "columns not used: id"),
        ({"messages": [ASK | {"at": 1}, SAY]}, [(["q"], "a")], "columns not used: messages.at"),
        ({"messages": [ASK, SAY], "system": "s"}, [(["s", "q"], "a")], ""),
        ({"prompt": "q", "completion": "a", "system": "s"}, [(["s", "q"], "a")], ""),
        ({"prompt": [ASK], "completion": [SAY]}, [(["q"], "a")], ""),
        ({"messages": [ASK, SAY], "tools": None, "weight": 1}, [(["q"], "a")], ""),
        (
            {"messages": [ASK, SAY | {"reasoning_content": "t"}]},
            [(["q"], "<think>\nt\n</think>\n\na")],
            "",
        ),
        (
            {"messages": [ASK, SAY | {"reasoning": "t"}]},
            [(["q"], "<think>\nt\n</think>\n\na")],
            "",
        ),
        (
            {"messages": [ASK, SAY | {"reasoning": "t", "reasoning_content": "t"}]},
            [(["q"], "<think>\nt\n</think>\n\na")],
            "",
        ),
        (
            {"messages": [ASK, SAY | {"train": False}, MORE, LAST | {"train": True}]},
            [(["q", "a", "r"], "b")],
            "",
        ),
        (
            {"messages": [ASK, SAY | {"loss": False}, MORE, LAST | {"loss": None}]},
            [(["q", "a", "r"], "b")],
            "",
        ),
        (
            {"messages": [ASK, SAY | {"weight": 0}, MORE, LAST | {"weight": 1}]},
            [(["q", "a", "r"], "b")],
            "",
        ),
        (
            {"messages": [ASK, SAY], "prompt": "other", "completion": "other"},
            [(["q"], "a")],
            "columns not used: completion, prompt",
        ),
        ({"conversations": [HUMAN, GPT], "id": 3}, [(["q"], "a")], "columns not used: id"),
        ({"conversations": [ASK, SAY]}, [(["q"], "a")], ""),
        ({"conversations": [HUMAN, GPT], "system": "s"}, [(["s", "q"], "a")], ""),
        (
            {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT | {"weight": None}]},
            [(["s", "q"], "a")],
            "",
        ),
        (
            {"conversations": [HUMAN, GPT | {"weight": 0}, {"from": "user", "value": "r"}, LAST]},
            [(["q", "a", "r"], "b")],
            "",
        ),
        (
            {"messages": [ASK, SAY], "conversations": [HUMAN, GPT]},
            [(["q"], "a")],
            "columns not used: conversations",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, SAY]},
            [(["q"], "a")],
            "",
        ),
    ],
)
def test_a_row_is_read_whole_or_what_is_not_used_is_named(tmp_path, row, expected, remark):
    found, skipped = load(tmp_path, row)
    assert said(found) == expected
    assert [s.reason for s in skipped] == ([remark] if remark else [])


def test_the_last_turn_that_is_learned_is_the_last_one_with_weight(tmp_path):
    found, _ = load(tmp_path, {"messages": [ASK, SAY, MORE, LAST | {"weight": 0}]}, turns="last")
    assert said(found) == [(["q"], "a")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [ASK, SAY | {"weight": 0.5}]}, "message 2: 'weight' is 0.5: must be 0 or 1"),
        ({"messages": [ASK, SAY | {"train": "no"}]}, "message 2: 'train' is 'no': must be 0 or 1"),
        ({"messages": [ASK, SAY | {"weight": 0}]}, "has no turn of the assistant with a text to"),
        ({"messages": [ASK, SAY], "weight": 2.0}, "field 'weight' is 2.0: rows have no weights"),
        ({"messages": [ASK, SAY], "tools": [{"name": "f"}]}, "field 'tools' is not supported"),
        ({"messages": [ASK, SAY], "images": ["x"]}, "field 'images' is not supported"),
        (
            {"messages": [ASK, SAY | {"tool_calls": [{"id": "1"}]}]},
            "message 2: field 'tool_calls' is not supported",
        ),
        ({"messages": [ASK | {"name": "Ann"}, SAY]}, "message 1: field 'name' is not supported"),
        ({"messages": [ASK, {"role": "gpt", "content": "a"}]}, "'role' is 'gpt': must be one of"),
        ({"talk": [ASK, SAY]}, "name the columns with messages, or prompt and completion"),
        ({"conversations": [HUMAN, {"from": "me", "value": "a"}]}, "'from' is 'me': must be one"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "message 2: 'value' is not a text"),
        ({"conversations": [HUMAN, {"value": "a"}]}, "'role' is not a text (it has value)"),
        (
            {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]},
            "'from' is 'function_call': must be one of",
        ),
        ({"conversations": [GPT, HUMAN]}, "begins with the assistant"),
        ({"conversations": [HUMAN, GPT], "tools": "[{}]"}, "field 'tools' is not supported"),
        ({"prompt": "q", "completion": float("nan")}, "field 'completion' is float, not text"),
    ],
)
def test_what_cannot_be_learned_as_it_stands_is_refused_in_one_line(tmp_path, row, says):
    with pytest.raises(UserError) as error:
        load(tmp_path, row)
    message = str(error.value)
    assert "rows.jsonl:1: " in message and says in message and "\n" not in message


def test_columns_have_the_names_that_the_user_gives(tmp_path):
    row = {"q": "q", "a": "a", "talk": [ASK, SAY], "messages": [MORE, LAST]}
    for named in (
        ConversationColumns(prompt="q", completion="a"),
        ConversationColumns(messages="talk"),
    ):
        assert said(load(tmp_path, row, named=named)[0]) == [(["q"], "a")]
