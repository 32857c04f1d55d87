"""The task Questions: rows of every schema that users bring."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdjax import config, tasks
from sdjax.errors import UserError
from sdjax.tasks.math import INSTRUCTION
from sdjax.tasks.questions import CHOOSE, Questions

CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}]
ASKED = [{"role": "user", "content": r"1+1? Answer in \boxed{}."}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": 'What is 1+1? Answer after "####".'}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}


def load(folder, rows, form="jsonl", **fields):
    file = folder / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = Questions(**{"train": str(file), "held_out": 0} | fields)
    return tasks.load(cfg, config.Data())


# A row of each schema, what the model reads last, the answer, a right and a wrong completion.
SCHEMAS = {
    "question and answer": (
        {"question": "1+1?", "answer": "2"},
        *("1+1?" + INSTRUCTION, "2", r"\boxed{2}", r"\boxed{3}"),
    ),
    "a text as answer": (
        {"question": "Capital of Japan?", "answer": "Tokyo"},
        *("Capital of Japan?" + INSTRUCTION, "Tokyo", r"\boxed{Tokyo}", r"\boxed{Kyoto}"),
    ),
    "GSM8K": (
        {"question": "1+1?", "answer": "It is 1+1.\n#### 2"},
        *("1+1?" + INSTRUCTION, "2", r"\boxed{2}", r"\boxed{3}"),
    ),
    "TRL, a conversation": (
        {"prompt": CHAT, "solution": "$2$"},
        *("1+1?", "$2$", r"\boxed{2}", r"\boxed{3}"),
    ),
    "TRL, a conversation about numbers": (
        {"prompt": CHAT, "ground_truth": "2"},
        *("1+1?", "2", "It is 2.", "It is 3."),
    ),
    "TRL, a text with a worked solution": (
        {"prompt": "1+1?", "solution": r"One and one: \boxed{2}"},
        *("1+1?" + INSTRUCTION, "2", r"\boxed{2}", r"\boxed{3}"),
    ),
    "a box asked for": (
        {"prompt": ASKED, "answer": 2},
        *(ASKED[0]["content"], "2", r"\boxed{2}", "It is 2."),
    ),
    "verl": (VERL, *(VERL["prompt"][0]["content"], "2", "So\n#### 2", "So\n#### 3")),
    "options": (
        {"question": "Which?", "choices": ["x", "y"], "answer": 1},
        *("Which?\n\nA: x\nB: y" + CHOOSE, "B", "<answer>B</answer>", "<answer>A</answer>"),
    ),
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_row_of_each_schema_is_asked_and_graded(schema, form, tmp_path):
    row, asked, answer, right, wrong = SCHEMAS[schema]
    task = load(tmp_path, [row], form)
    (example,) = task.train
    assert (example.messages[-1]["content"], example.answer) == (asked, answer)
    assert task.grade(right, example, truncated=False).correct
    assert not task.grade(wrong, example, truncated=False).correct


def test_columns_have_the_names_that_the_user_gives(tmp_path):
    row = {"q": "1+1?", "meta": {"gold": 2}, "s": "worked", "opts": None}
    names = {"question": "q", "answer": "meta.gold", "solution": "s", "choices": "opts"}
    task = load(tmp_path, [row], system="Be brief.", instruction=" Go.", **names)
    (example,) = task.train
    assert [m["content"] for m in example.messages] == ["Be brief.", "1+1? Go."]
    assert (example.answer, example.solution) == ("2", "worked")


def test_the_rule_can_be_named(tmp_path):
    rows = [{"question": "1+1?", "answer": "2"}]
    task = load(tmp_path, rows, grader="number")
    assert task.train[0].messages[-1]["content"] == "1+1?"
    assert task.grade("It is 2.", task.train[0], truncated=False).correct


@pytest.mark.parametrize(
    ("rule", "answer", "right"),
    [
        ("number", "$1,234.50", "1234.5"),
        ("number", "1/3", "1/3"),
        ("choice", "b", "B"),
        ("expression", "3 4 5 = 17", "3*4+5"),
        ("tooluse", '[{"Action": "f", "Action_Input": {}}]', "Action: f\nAction Input: {}"),
        ("math", "12 apples", r"\boxed{12}"),
    ],
)
def test_an_answer_that_the_named_rule_reads_can_be_given(rule, answer, right, tmp_path):
    task = load(tmp_path, [{"prompt": "q", "answer": answer}], grader=rule)
    assert task.grade(right, task.train[0], truncated=False).correct


def test_rows_are_held_out_and_columns_that_nobody_reads_are_named(tmp_path):
    rows = [{"question": f"{i}+1?", "answer": i + 1, "level": 3} for i in range(10)]
    task = load(tmp_path, rows, held_out=3)
    assert (len(task.train), len(task.held_out)) == (7, 3)
    assert [s.reason for s in task.skipped] == ["columns not used: level"]
    assert task.train[0].columns == {}


def test_a_reward_gets_every_column_as_a_json_value(tmp_path):
    import datetime

    row = VERL | {"day": datetime.date(2026, 1, 2), "raw": b"ab", "list": [1.5, None]}
    task = load(tmp_path, [row], "parquet", reward="rewards_of_users:brevity")
    expected = VERL | {"day": "2026-01-02", "raw": "ab", "list": [1.5, None]}
    assert task.train[0].columns == expected and not task.skipped


def test_rows_for_an_own_reward_need_no_answer(tmp_path):
    rows = [{"prompt": "q", "solution": "step by step, " * 20}]
    task = load(tmp_path, rows, reward="rewards_of_users:brevity")
    (example,) = task.train
    assert (example.answer, example.messages[-1]["content"]) == ("", "q")
    assert example.solution == rows[0]["solution"]
    verl = VERL | {"reward_model": {"ground_truth": {"target": 3, "numbers": [1, 2]}}}
    task = load(tmp_path, [verl], reward="rewards_of_users:compute_score")
    assert task.grade("x", task.train[0], truncated=False).reward == 0.0


@pytest.mark.parametrize(
    ("rows", "fields", "says"),
    [
        ([{"q": "1", "a": 1}], {}, "rows.jsonl:1: has the columns a, q; needs one of prompt"),
        ([{"prompt": "q"}], {}, "rows.jsonl:1: field 'answer' is missing"),
        ([{"prompt": "q", "solution": "w" * 101}], {}, "name the answer's column with task.answer"),
        ([{"prompt": "q", "answer": float("nan")}], {}, "field 'answer' is nan"),
        ([{"prompt": "q", "answer": 1, "images": ["a"]}], {}, "field 'images' is not supported"),
        (
            [{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}],
            {},
            "has a part of type 'image'",
        ),
        ([{"prompt": "q", "answer": 1}], {"grader": "code"}, "task.grader is 'code': must be one"),
        (
            [{"prompt": "q"}, {"prompt": "r", "answer": 1}],
            {"reward": "rewards_of_users:brevity"},
            "rows.jsonl:1 has no answer, ",
        ),
        (
            [{"prompt": "q", "answer": "A", "choices": ["x", "y"]}, {"prompt": "r", "answer": 1}],
            {},
            "rows of one task must be alike",
        ),
        (
            [{"prompt": "q"}],
            {"grader": "number", "reward": "rewards_of_users:brevity"},
            "task.grader is 'number': the rows have no answers",
        ),
        ([], {"train": ""}, "task.train is '': name a source"),
        (
            [{"prompt": "q", "answer": "12 apples"}],
            {"grader": "number"},
            "rows.jsonl:1: the answer is '12 apples': the rule number takes one number",
        ),
        (
            [{"prompt": "q", "answer": "x", "choices": ["x", "y"]}],
            {"grader": "number"},
            "the answer is 'A': the rule number takes one number",
        ),
        ([{"prompt": "q", "answer": "12"}], {"grader": "choice"}, "choice takes one letter"),
        ([{"prompt": "q", "answer": "b"}], {"grader": "choice_reference"}, "one capital letter"),
        ([{"prompt": "q", "answer": "17"}], {"grader": "expression"}, "such as 3 4 5 = 17"),
        ([{"prompt": "q", "answer": "f(1)"}], {"grader": "tooluse"}, "takes a JSON list of calls"),
    ],
)
def test_what_cannot_be_asked_or_graded_is_refused_in_one_line(tmp_path, rows, fields, says):
    with pytest.raises(UserError) as error:
        load(tmp_path, rows, **fields)
    assert says in str(error.value) and "\n" not in str(error.value)
