"""Rows as users bring them: every task that reads rows x every kind of column."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdjax import config, tasks
from sdjax.data.rows import RowError
from sdjax.errors import UserError
from sdjax.jobs import prepare_job
from sdjax.tasks.from_rows import letter, options
from sdjax.tasks.livecodebench import LiveCodeBench
from sdjax.tasks.math import INSTRUCTION, Math, prompt
from sdjax.tasks.sciknoweval import SciKnowEval
from sdjax.tasks.tooluse import ToolUse

CALLS = '[{"Action": "f", "Action_Input": "{}"}]'
TESTS = json.dumps(
    {"testtype": "stdin", "fn_name": "", "inputs": ["1"], "outputs": ["1"], "time_limit": 2}
)
# Each task that reads rows, with the column and a value of its answer.
READERS = {
    "math": (lambda **fields: Math(train="", **fields), {"answer": "B"}),
    "sciknoweval": (lambda **fields: SciKnowEval(train="", **fields), {"answer": "B"}),
    "tooluse": (lambda **fields: ToolUse(train="", **fields), {"answer": CALLS}),
    "livecodebench": (
        lambda test, **fields: LiveCodeBench(source=test, **fields),
        {"tests": TESTS},
    ),
}
CHAT = [{"role": "user", "content": "q"}]
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARED = [
    {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "q"}
]  # fmt: skip
SYSTEM = {"role": "system", "content": "s"}


def load(cfg, **data):
    return tasks.load(cfg, config.Data(**data))


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(task, tmp_path, row, **fields):
    """Returns the one example of a row, without the instruction, and the remarks on the file."""
    make, answer = READERS[task]
    loaded = load(make(test=write(tmp_path / "rows.jsonl", [answer | row]), **fields))
    (example,) = loaded.held_out
    said = [(m["role"], m["content"].removesuffix(INSTRUCTION)) for m in example.messages]
    return said, [s.reason for s in loaded.skipped]


GOOD = {
    "text": ({"prompt": "q"}, [("user", "q")], ""),
    "conversation": ({"prompt": CHAT}, [("user", "q")], ""),
    "messages": ({"messages": CHAT}, [("user", "q")], ""),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"}]}, [("user", "q")], ""),
    "ShareGPT with more": (
        {"conversations": SHARED, "system": "s"},
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "q")],
        "",
    ),
    "earlier turns": (
        {"prompt": [*EARLIER, *CHAT]},
        [("user", "a"), ("assistant", "b"), ("user", "q")],
        "",
    ),
    "system message": ({"prompt": [SYSTEM, *CHAT]}, [("system", "s"), ("user", "q")], ""),
    "system column": ({"prompt": "q", "system": "s"}, [("system", "s"), ("user", "q")], ""),
    "both the same": (
        {"prompt": [SYSTEM, *CHAT], "system": "s"},
        [("system", "s"), ("user", "q")],
        "",
    ),
    "no system": ({"prompt": "q", "system": ""}, [("user", "q")], ""),
    "null": ({"prompt": "q", "system": None, "tools": None, "images": []}, [("user", "q")], ""),
    "parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]},
        [("user", "q")],
        "",
    ),
    "thinking": (
        {"prompt": [EARLIER[0], EARLIER[1] | {"reasoning_content": "t"}, *CHAT]},
        [("user", "a"), ("assistant", "<think>\nt\n</think>\n\nb"), ("user", "q")],
        "",
    ),
    "other columns": (
        {"prompt": "q", "id": 7, "level": "hard", "meta": {"a": 1}, "empty": ""},
        [("user", "q")],
        "columns not used: id, level, meta",
    ),
    "other fields": (
        {"prompt": [{"role": "user", "content": "q", "at": 3}], "id": 0},
        [("user", "q")],
        "columns not used: id, prompt.at",
    ),
}
BAD = {
    "images": ({"prompt": "q", "images": ["a.png"]}, "field 'images' is not supported"),
    "tools": ({"prompt": "q", "tools": [{"name": "f"}]}, "field 'tools' is not supported"),
    "tool calls": (
        {"prompt": [EARLIER[0], {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]},
        "field 'prompt', message 2: field 'tool_calls' is not supported",
    ),
    "name": (
        {"prompt": [CHAT[0] | {"name": "Ann"}]},
        "field 'prompt', message 1: field 'name' is not supported",
    ),
    "image part": (
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "message 1: 'content' has a part of type 'image_url'",
    ),
    "weight": ({"prompt": [CHAT[0] | {"weight": 0.5}]}, "'weight' is 0.5: must be 0 or 1"),
    "role": ({"prompt": [{"role": "human", "content": "q"}]}, "'role' is 'human': must be one of"),
    "other schema": ({"prompt": [{"who": "human", "text": "q"}]}, "(it has text, who)"),
    "ShareGPT's answer": (
        {"conversations": SHARED[:2]},
        "field 'conversations' ends with a message of role 'assistant'",
    ),
    "ends early": ({"messages": [*CHAT, EARLIER[1]]}, "ends with a message of role 'assistant'"),
    "two systems": ({"prompt": [SYSTEM, *CHAT], "system": "other"}, "field 'system' differs"),
    "number": ({"prompt": 3}, "field 'prompt' is int, not text"),
    "blank": ({"prompt": " "}, "field 'prompt' is empty"),
    "surrogate": ({"prompt": "q\ud83d"}, "holds half of a character"),
    "thinking twice": (
        {
            "prompt": [
                EARLIER[0],
                {"role": "assistant", "content": "<think>x</think>b", "thinking": "t"},
                *CHAT,
            ]
        },
        "message 2: has its thinking twice",
    ),
    "thinking user": ({"prompt": [CHAT[0] | {"reasoning_content": "t"}]}, "'reasoning_content'"),
}


@pytest.mark.parametrize("task", READERS)
@pytest.mark.parametrize("kind", GOOD)
def test_every_task_reads_every_kind_of_prompt_and_names_what_it_does_not_use(
    task, kind, tmp_path, request
):
    if task == "livecodebench":
        request.getfixturevalue("sandboxed")
    row, said, remark = GOOD[kind]
    assert read(task, tmp_path, row) == (said, [remark] if remark else [])


@pytest.mark.parametrize("task", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_every_task_refuses_what_a_prompt_cannot_carry_in_one_line(task, kind, tmp_path, request):
    if task == "livecodebench":
        request.getfixturevalue("sandboxed")
    row, says = BAD[kind]
    with pytest.raises(UserError) as error:
        read(task, tmp_path, row)
    message = str(error.value)
    assert "rows.jsonl:1: " in message and says in message and "\n" not in message


@pytest.mark.parametrize("task", ["math", "sciknoweval", "tooluse"])
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "csv", "tfds"])
def test_columns_have_the_names_that_the_user_gives_in_every_format(task, form, tmp_path):
    make, answer = READERS[task]
    row = {"problem_text": "q", "gold": {"value": answer["answer"]}, "prompt": "other", "n": 1}
    source = str(tmp_path / f"rows.{form}")
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), source)
    elif form == "json":
        (tmp_path / "rows.json").write_text(json.dumps([row], indent=1))
    elif form == "csv":
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["problem_text", "gold.value", "prompt", "n"])
            table.writerow(["q", answer["answer"], "other", 1])
    else:
        source = write(tmp_path / "rows.jsonl", [row])
    if form == "tfds":
        prepare_job.run(
            config.Prepare(name=f"mine_{task}", splits={"a": source}, out=str(tmp_path))
        )
        source = f"{tmp_path}/mine_{task}/1.0.0:a"
    loaded = load(make(test=source, question="problem_text", answer="gold.value", system="s"))
    (example,) = loaded.held_out
    assert [m["content"].removesuffix(INSTRUCTION) for m in example.messages] == ["s", "q"]
    assert example.answer == answer["answer"]
    assert [s.reason for s in loaded.skipped] == ["columns not used: n, prompt"]


def test_a_column_that_only_some_rows_leave_unused_is_counted(tmp_path):
    rows = [{"problem": f"q{i}", "answer": 1} for i in range(3)]
    rows += [{"problem": "q", "question": "other", "answer": 1}]
    task = load(Math(train="", test=write(tmp_path / "rows.jsonl", rows)))
    assert [s.reason for s in task.skipped] == ["columns not used: question (in 1 rows)"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1/2", "1/2"),
        (5, "5"),
        (-0.25, "-0.25"),
        (0.30000000000000004, "0.30000000000000004"),
        (5.0, "5.0"),
        (True, "True"),
        (False, "False"),
        ([1, 2], "[1, 2]"),
        (["a", 0.5], "[a, 0.5]"),
        ([[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
        (["7"], "7"),
    ],
)
@pytest.mark.parametrize("place", ["answer", "reward_model"])
def test_a_completion_with_the_answer_of_a_row_is_right_and_another_one_wrong(
    tmp_path, value, text, place
):
    gold = {"answer": value} if place == "answer" else {"reward_model": {"ground_truth": value}}
    task = load(Math(train="", test=write(tmp_path / "rows.jsonl", [{"prompt": "q"} | gold])))
    (example,) = task.held_out
    assert example.answer == text
    assert task.grade(rf"so \boxed{{{text}}}", example, truncated=False).correct
    assert not task.grade(r"so \boxed{11}", example, truncated=False).correct


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "is nan: an answer must be finite"),
        (float("-inf"), "is -inf: an answer must be finite"),
        ([1, float("nan")], "value 2 is nan"),
        ([], "is an empty list"),
        ([1, None], "value 2 is NoneType"),
        ({"a": 1}, "is an object, not text"),
        ("", "is empty"),
        ("#### ", "after #### is empty"),
        (None, "is missing"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_answer_that_cannot_be_graded_is_named_by_row(tmp_path, value, says, form):
    rows = [{"question": "q", "answer": value}] * 2
    source = str(tmp_path / f"rows.{form}")
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        load(Math(train="", test=source))
    assert f"rows.{form}:1: field 'answer'" in str(error.value) and says in str(error.value)


def test_the_remedy_for_the_first_row_fits_a_file_whose_rows_are_all_like_it(tmp_path):
    rows = [{"text": "q", "label": 1}] * 12
    with pytest.raises(UserError) as error:
        load(Math(train="", test=write(tmp_path / "rows.jsonl", rows)))
    assert "name the question's column with task.question" in str(error.value)
    assert str(error.value).endswith("none of the first 12 rows is usable")
    rows[5] = {"question": "q", "answer": 1}
    with pytest.raises(UserError, match=r"mend the row or set data.on_bad_row to 'skip'"):
        load(Math(train="", test=write(tmp_path / "rows.jsonl", rows)))


@pytest.mark.parametrize("task", ["math", "sciknoweval", "tooluse"])
def test_rows_are_held_out_of_the_training_file_without_a_test_file(task, tmp_path):
    make, answer = READERS[task]
    # Every prompt occurs twice.
    rows = [answer | {"prompt": f"q{i % 20}"} for i in range(40)]
    train = write(tmp_path / "rows.jsonl", rows)
    cfg = type(make(test=train))
    more = {"deduplicate": False} if task == "math" else {}

    def asked(examples):
        return {example.messages[-1]["content"] for example in examples}

    loaded = load(cfg(train=train, test="", held_out=5, **more))
    prompts = [asked(part) for part in (loaded.train, loaded.held_out)]
    assert (len(loaded.train), len(loaded.held_out)) == (30, 5)
    assert [len(p) for p in prompts] == [15, 5] and not prompts[0] & prompts[1]
    other = load(cfg(train=train, test="", held_out=5, seed=1, **more))
    assert asked(other.held_out) != prompts[1]
    shuffled = write(tmp_path / "shuffled.jsonl", rows[::-1])
    again = load(cfg(train=shuffled, test="", held_out=5, **more))
    assert asked(again.held_out) == prompts[1]
    with pytest.raises(UserError, match=r"task.held_out is 11: .* the 20 prompts of"):
        load(cfg(train=train, test="", held_out=11, **more))


@pytest.mark.parametrize("task", ["math", "sciknoweval", "tooluse"])
def test_held_out_0_gives_no_held_out_examples_and_reads_no_test_file(task, tmp_path):
    make, answer = READERS[task]
    train = write(tmp_path / "rows.jsonl", [answer | {"prompt": "q"}])
    cfg = type(make(test=train))
    for test in ("", "nowhere.jsonl"):
        loaded = load(cfg(train=train, test=test, held_out=0))
        assert (len(loaded.train), list(loaded.held_out)) == (1, [])
    with pytest.raises(UserError, match=r"test.*every row to be held out is in the training set"):
        load(cfg(train=train, test=train))


@pytest.mark.parametrize("task", ["math", "tooluse"])
def test_a_task_without_any_source_says_which_to_name(task):
    for fields in ({"test": ""}, {"test": "x.jsonl", "held_out": 0}):
        with pytest.raises(UserError, match=r"task.train is '': name a source"):
            load(READERS[task][0](**fields))


@pytest.mark.parametrize("task", sorted(READERS.keys() - {"livecodebench"}))
def test_a_prompt_with_another_system_prompt_is_another_prompt(task, tmp_path):
    make, answer = READERS[task]
    rows = [answer | {"prompt": "q", "system": text} for text in ("one", "two")]
    train = write(tmp_path / "train.jsonl", rows[:1])
    test = write(tmp_path / "test.jsonl", rows)
    (kept,) = load(type(make(test=test))(train=train, test=test)).held_out
    assert kept.messages[0]["content"] == "two"
    assert len(load(Math(train=test, test="", held_out=0)).train) == 2 or task != "math"


def test_options_follow_the_question_by_letter(tmp_path):
    row = {"question": "Which?", "choices": ["x", "y", "z"]}
    rows = [row | {"answer": answer} for answer in ("B", "y", 1)]
    loaded = load(SciKnowEval(test=write(tmp_path / "rows.jsonl", rows)))
    assert {e.messages[-1]["content"] for e in loaded.held_out} == {"Which?\n\nA: x\nB: y\nC: z"}
    assert [e.answer for e in loaded.held_out] == ["B"] * 3 and not loaded.skipped
    aside = load(SciKnowEval(test=write(tmp_path / "rows.jsonl", rows[:1]), choices=""))
    assert [s.reason for s in aside.skipped] == ["columns not used: choices"]


@pytest.mark.parametrize(
    ("choices", "answer", "found"),
    [
        (["x", "y"], "A", "A"),
        (["B", "A"], "A", None),  # the letter, or the option?
        (["B", "A"], 0, "A"),
        (["x", "x"], "x", None),
        (["x", "y"], 2, None),
        (["x", "y"], True, None),
        ([1, 2, 3], 2, "B"),
        ([0.5, 1], 0.5, "A"),
        ({"text": ["x", "y"], "label": ["A", "B"]}, "B", "B"),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "1", None),
        ("x, y", "A", None),
        (["x"], "A", None),
        ([["x"], "y"], "A", None),
    ],
)
def test_an_answer_among_options_is_a_letter_an_option_or_an_index(choices, answer, found):
    row = {"choices": choices, "answer": answer}
    if found is None:
        with pytest.raises(RowError, match=r"field '(answer|choices)'"):
            letter(row, "answer", options(row, "choices"))
    else:
        assert letter(row, "answer", options(row, "choices")) == found


def test_files_of_ones_own_are_never_scored_on_a_domain_of_the_paper(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": "A"} for i in range(6)]
    task = load(SciKnowEval(train=write(tmp_path / "rows.jsonl", rows), held_out=2))
    assert (len(task.train), len(task.held_out)) == (4, 2)


def test_the_calls_of_a_row_may_be_a_list(tmp_path):
    test = write(tmp_path / "rows.jsonl", [{"prompt": "q", "answer": json.loads(CALLS)}])
    (example,) = load(ToolUse(train="", test=test)).held_out
    assert json.loads(example.answer) == json.loads(CALLS)


def test_a_set_that_is_misspelt_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"task.test is 'aime2024': .*perhaps you meant aime24"):
        load(Math(train="", test="aime2024"))


def test_the_instructions_of_dapo_are_replaced_with_any_white_space_between_them():
    head = (
        "Solve the following math problem step by step.{}The last line of your response should be "
        "of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
    )
    tail = '\n\nRemember to put your answer on its own line after "Answer:".'
    for between, after in (("", ""), (" ", "\n\n"), ("\n", " ")):
        assert prompt(f"{head.format(between)}{after}q{tail}") == "q" + INSTRUCTION
