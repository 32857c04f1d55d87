"""Examples, prompts, splits and graders of every task."""

import base64
import json
import pickletools
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from paths import GOLDEN, ROOT

from sdjax import config, tasks
from sdjax.errors import UserError
from sdjax.jobs import prepare_job
from sdjax.tasks.arithmetic import Arithmetic
from sdjax.tasks.largest_number import LargestNumber
from sdjax.tasks.livecodebench import LiveCodeBench, pickled_text
from sdjax.tasks.math import INSTRUCTION, Math, prompt
from sdjax.tasks.sciknoweval import SciKnowEval
from sdjax.tasks.tooluse import ToolUse

DATA = GOLDEN / "data"
EASY = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def load(cfg: config.TaskConfig, **data) -> tasks.Task:
    return tasks.load(cfg, config.Data(**data))


def questions(examples) -> list[str]:
    return [e.messages[-1]["content"] for e in examples]


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture(scope="module")
def sums():
    return load(Arithmetic(options=EASY, held_out=40))


def test_sums_are_distinct_and_held_out_ones_never_occur_in_training(sums):
    train, held_out = questions(sums.train), questions(sums.held_out)
    assert len(set(train)) == len(train) > 140
    assert len(set(held_out)) == len(held_out) == 40
    assert not set(train) & set(held_out)


@pytest.mark.heavy
def test_no_seed_brings_a_held_out_question_into_training(sums):
    other = load(Arithmetic(options=EASY, held_out=40, seed=1))
    assert questions(other.train) != questions(sums.train)
    assert not set(questions(other.train)) & set(questions(sums.held_out))


def test_a_right_sum_is_graded_right_and_a_constant_answer_is_not(sums):
    examples = sums.held_out
    right = [f"The answer is {e.answer}." for e in examples]
    grades = sums.grade_many(right, examples, [False] * len(examples))
    assert all(g.correct and g.reward == 1 for g in grades)
    constant = [sums.grade("7", e, truncated=False).correct for e in examples]
    assert sum(constant) / len(constant) < 0.3


def test_system_prompt_and_instruction_stand_around_the_question():
    task = load(Arithmetic(options=EASY, held_out=1, size=1, system="S", instruction="I"))
    system, user = task.train[0].messages
    assert system == {"role": "system", "content": "S"}
    assert user["content"].endswith(" =\nI")


@pytest.mark.heavy
def test_generated_questions_are_the_same_in_every_process():
    script = (
        "from sdjax import config, tasks\nfrom sdjax.tasks.arithmetic import Arithmetic\n"
        "cfg = Arithmetic(name='polynomial_multiplication', size=3, held_out=1)\n"
        "print([e.answer for e in tasks.load(cfg, config.Data()).train])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PATH": "", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"name": "chan_sum"}, "task.name is 'chan_sum': .*near it: chain_sum"),
        ({"options": {"min_term": 2}}, "task.options does not suit .*chain_sum: .*min_term"),
        ({"options": {"min_terms": 9, "max_terms": 2}}, "task.options does not suit"),
        ({"options": EASY, "held_out": 500}, "task.held_out is 500: .*only 49 distinct held-out"),
    ],
)
def test_a_generator_that_cannot_do_it_says_why(cfg, says):
    with pytest.raises(UserError, match=says):
        load(Arithmetic(**cfg))


def test_options_that_task_fields_decide_are_refused():
    with pytest.raises(UserError, match=r"set task.seed instead"):
        Arithmetic(options={"seed": 1})


def test_answers_that_are_no_numbers_are_scored_by_the_generator():
    task = load(Arithmetic(name="spell_backward", size=3, held_out=2))
    example = task.train[0]
    texts = [f"<answer>{example.answer}</answer>", f"It reads {example.answer}", "zzz", ""]
    grades = task.grade_many(texts, [example] * 4, [False] * 4)
    assert [g.reward for g in grades] == [1, 0, 0, 0]
    assert not task.grade(example.answer, example, truncated=True).correct


def test_largest_numbers_never_run_out_and_depend_on_seed_and_index_alone():
    task = load(LargestNumber(held_out=50))
    assert len(task.train) > 10**9
    index = 123_456_789
    assert task.train[index] == load(LargestNumber(held_out=1)).train[index]
    assert task.train[index] != load(LargestNumber(held_out=1, seed=1)).train[index]
    with pytest.raises(IndexError):
        task.train[len(task.train)]


def asked(example) -> frozenset[str]:
    return frozenset(example.messages[0]["content"].partition(":")[2].strip(" ?").split(", "))


@pytest.mark.heavy
def test_largest_numbers_held_out_are_distinct_and_kept_out_of_training():
    few = {"min_numbers": 2, "max_numbers": 2, "low": 1, "high": 30}
    task = load(LargestNumber(held_out=150, **few))
    assert len(set(questions(task.held_out))) == 150
    trained = {asked(task.train[i]) for i in range(3000)}
    assert len(trained) > 200
    assert not trained & {asked(e) for e in task.held_out}
    with pytest.raises(UserError, match=r"task.held_out is 300: only 2\d\d distinct"):
        load(LargestNumber(held_out=300, **few))


def test_the_largest_number_is_graded_right():
    task = load(LargestNumber(held_out=20))
    for example in task.held_out:
        numbers = asked(example)
        assert 4 <= len(numbers) <= 6 and example.answer == max(numbers, key=int)
        assert task.grade(f"The largest is {example.answer}.", example, truncated=False).correct
        assert not task.grade(f"It is {min(numbers, key=int)}", example, truncated=False).correct


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_numbers": 1}, "task.min_numbers"),
        ({"max_numbers": 3}, "task.max_numbers"),
        ({"low": 5, "high": 9}, "task.high"),
        ({"prompt": "Which?"}, "task.prompt"),
        ({"held_out": -1}, "task.held_out"),
    ],
)
def test_largest_number_checks_its_fields(fields, says):
    with pytest.raises(UserError, match=says):
        LargestNumber(**fields)


@pytest.mark.parametrize(
    ("domain", "held_out"), [("biology", 20), ("chemistry", 20), ("material", 19), ("physics", 20)]
)
def test_sciknoweval_reads_a_domain_and_drops_held_out_questions_seen_in_training(domain, held_out):
    folder = DATA / "sciknoweval" / domain
    task = load(SciKnowEval(train=str(folder / "train.json"), test=str(folder / "test.json")))
    assert (len(task.train), len(task.held_out)) == (20, held_out)
    assert [s.row for s in task.skipped if s.row] == ([15] if domain == "material" else [])
    example = task.train[0]
    assert [m["role"] for m in example.messages] == ["system", "user"]
    assert example.messages[0]["content"].startswith("\nGiven a question and four options")
    assert task.grade(f"<answer>\n{example.answer}\n</answer>", example, truncated=False).correct


ROW = {"prompt": "Which?\n\nA: 1\nB: 2", "system": "s", "answer": "A"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": None}, "field 'answer' is missing"),
        ({"answer": "A or B"}, "field 'answer' is 'A or B', not one letter"),
        ({"prompt": ""}, "field 'prompt' is empty"),
    ],
)
def test_a_row_that_is_no_question_is_named_or_skipped(tmp_path, change, says):
    train = write(tmp_path / "train.json", [ROW, ROW | change])
    test = write(tmp_path / "test.json", [ROW | {"prompt": "other"}])
    with pytest.raises(UserError) as error:
        load(SciKnowEval(train=train, test=test))
    assert f"{train}:2: {says}" in str(error.value)
    task = load(SciKnowEval(train=train, test=test), on_bad_row="skip")
    assert len(task.train) == 1 and task.skipped[0].reason == says


@pytest.mark.parametrize(
    ("name", "count"),
    [("seen_1x64", 1), ("seen_8x8", 8), ("seen_64", 20), ("seen_128", 20), ("seen_512", 19)],
)
def test_the_papers_training_subsets_are_used_without_repeats(name, count):
    train = str(DATA / "math" / f"{name}.parquet")
    task = load(Math(train=train, test=str(DATA / "math" / "aime24.parquet")))
    assert (len(task.train), len(task.held_out)) == (count, 20)
    assert all(q.endswith(INSTRUCTION) and q.count(INSTRUCTION) == 1 for q in questions(task.train))


@pytest.mark.parametrize("name", ["aime25", "amc23", "math500"])
def test_the_papers_evaluation_sets_are_read_without_a_training_set(name):
    task = load(Math(train="", test=str(DATA / "math" / f"{name}.parquet")))
    assert (len(task.train), len(task.held_out)) == (0, 20)
    assert (task.held_out[0].solution is not None) == (name == "math500")
    example = task.held_out[0]
    assert task.grade(rf"\boxed{{{example.answer}}}", example, truncated=False).correct


@pytest.mark.parametrize(
    ("row", "answer", "solution"),
    [
        ({"problem": "q", "answer": "7", "solution": "s"}, "7", "s"),
        ({"question": "q", "answer": "so 7\n#### 1,234"}, "1,234", "so 7"),
        ({"problem": "q", "solution": r"thus \boxed{8}"}, "8", r"thus \boxed{8}"),
        ({"question": "q", "answer": 5}, "5", None),
        ({"prompt": "q", "reward_model": {"ground_truth": "9"}}, "9", None),
    ],
)
def test_math_rows_of_every_known_schema_are_read(tmp_path, row, answer, solution):
    task = load(Math(train="", test=write(tmp_path / "rows.jsonl", [row])))
    (example,) = task.held_out
    assert (example.answer, example.solution) == (answer, solution)
    assert example.messages == ({"role": "user", "content": "q" + INSTRUCTION},)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "q", "label": "1"}, "has the columns label, text; needs one of prompt, problem,"),
        ({"problem": "q"}, "field 'answer' is missing"),
        (
            {"prompt": [], "reward_model": {"ground_truth": "1"}},
            "field 'prompt' is an empty list",
        ),
        (
            {"prompt": [{"role": "user"}], "reward_model": {"ground_truth": "1"}},
            "field 'prompt', message 1: 'content' is not a text",
        ),
        (
            {"problem": "q", "answer": {"value": 1}},
            "field 'answer' is an object, not text, a number",
        ),
        ({"problem": "q", "answer": "1", "solution": ["s"]}, "field 'solution' is list, not text"),
        ({"reward_model": {"ground_truth": "1"}}, "has the columns reward_model; needs one of"),
        ({"prompt": "q", "reward_model": "1"}, "field 'reward_model.ground_truth' is missing"),
    ],
)
def test_math_rows_of_an_unknown_schema_are_named(tmp_path, row, says):
    source = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError) as error:
        load(Math(train="", test=source))
    assert f"{source}:1: " in str(error.value) and says in str(error.value)


def test_repeated_training_questions_are_used_once_unless_asked_otherwise(tmp_path):
    rows = [{"problem": q, "answer": "1"} for q in "aababc"]
    source = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [{"problem": q, "answer": "1"} for q in "cd"])
    task = load(Math(train=source, test=test))
    assert questions(task.train) == [q + INSTRUCTION for q in "abc"]
    assert questions(task.held_out) == ["d" + INSTRUCTION]
    assert [s.reason for s in task.skipped] == [
        "3 rows repeat an earlier prompt",
        "the same prompt is in the training set",
    ]
    assert len(load(Math(train=source, test=test, deduplicate=False)).train) == 6


def test_a_question_that_has_its_instruction_does_not_get_it_twice():
    assert prompt("q" + INSTRUCTION) == "q" + INSTRUCTION
    assert prompt("q", instruction="") == "q"


def test_a_prepared_data_set_gives_the_same_task_as_its_file(tmp_path, capsys):
    rows = [{"problem": f"q{i}", "answer": str(i), "level": i} for i in range(5)]
    source = write(tmp_path / "rows.jsonl", rows)
    cfg = config.Prepare(name="my_set", splits={"test": source}, out=str(tmp_path / "data"))
    prepare_job.run(cfg)
    printed = capsys.readouterr().out
    assert "test: 5 rows" in printed and printed.count("  sha256 ") == 2
    folder = tmp_path / "data" / "my_set" / "1.0.0"
    built = load(Math(train="", test=f"{folder}:test")).held_out
    assert built == load(Math(train="", test=source)).held_out
    with pytest.raises(UserError, match="is there already"):
        prepare_job.run(cfg)


def test_tooluse_reads_the_papers_rows_and_its_answers_are_right():
    task = load(ToolUse(train="", test=str(DATA / "tooluse" / "test.json")))
    assert len(task.held_out) == 20
    texts = [
        "\n".join(
            f"Action: {call['Action']}\nAction Input: {call['Action_Input']}"
            for call in json.loads(e.answer)
        )
        for e in task.held_out
    ]
    grades = task.grade_many(texts, task.held_out, [False] * 20)
    assert all(g.correct for g in grades)
    assert [m["role"] for m in task.held_out[0].messages] == ["user"]


def test_tooluse_reveals_expected_calls_only_when_asked(tmp_path):
    answer = '[{"Action": "f", "Action_Input": "{}"}]'
    test = write(tmp_path / "rows.json", [{"prompt": "p", "answer": answer, "system": None}])
    for reveal in (False, True):
        task = load(ToolUse(train="", test=test, reveal_answer=reveal))
        grade = task.grade("nothing", task.held_out[0], truncated=False)
        assert ("f({})" in grade.feedback) == reveal


def test_a_tooluse_row_without_readable_calls_is_named(tmp_path):
    test = write(tmp_path / "rows.json", [{"prompt": "p", "answer": '[{"Action": "f"}]'}])
    with pytest.raises(UserError, match=r"rows.json:1: field 'answer' holds no list of calls"):
        load(ToolUse(train="", test=test))


TESTS = {
    "testtype": "stdin",
    "fn_name": "",
    "inputs": ["1\n", "2\n", "3\n", "4\n", "5\n"],
    "outputs": ["1", "4", "9", "16", "25"],
    "time_limit": 2,
}
# What pickle.dumps(text, protocol=4) gives for a text, spelt out.
PICKLED = b"\x80\x04\x8d%s%s\x94."


def packed(cases: list[dict]) -> str:
    text = json.dumps(cases).encode()
    return base64.b64encode(
        zlib.compress(PICKLED % (len(text).to_bytes(8, "little"), text))
    ).decode()


def problem(date: str, **more) -> dict:
    cases = [{"input": "1\n2", "output": "3", "testtype": "functional"}] * 3
    return {
        "question_content": f"Add. {date}",
        "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:",
        "contest_date": f"{date}T00:00:00",
        "private_test_cases": packed(cases),
        "metadata": '{"func_name": "add"}',
    } | more


def test_livecodebench_trains_on_a_share_of_the_tests_and_evaluates_on_all(tmp_path, sandboxed):
    source = write(tmp_path / "rows.json", [{"prompt": "Square.", "tests": json.dumps(TESTS)}])
    task = load(LiveCodeBench(source=source))
    shown, hidden = (json.loads(e.answer) for e in (task.train[0], task.held_out[0]))
    assert hidden == TESTS
    assert len(shown["inputs"]) == len(shown["outputs"]) == 2
    assert [i for i in TESTS["inputs"] if i in shown["inputs"]] == shown["inputs"]
    text = "```python\nprint(int(input()) ** 2)\n```"
    assert task.grade(text, task.held_out[0], truncated=False).correct
    wrong = task.grade(text.replace("** 2", "* 2"), task.held_out[0], truncated=False)
    assert wrong.feedback.startswith(
        "Test Case 1: Wrong Answer\n\nInput\n1\n\nOutput\n2\n\nExpected\n1"
    )


def test_livecodebench_reads_its_home_rows_between_two_dates(tmp_path, sandboxed):
    rows = [problem(d) for d in ("2025-01-31", "2025-02-01", "2025-04-30", "2025-05-01")]
    source = write(tmp_path / "rows.jsonl", rows)
    task = load(LiveCodeBench(source=source))
    assert [e.id for e in task.held_out] == ["2", "3"]
    question = task.held_out[0].messages[0]["content"]
    assert question.startswith("You are a coding expert.") and "def add(self, a" in question
    answer = "```python\nclass Solution:\n    def add(self, a, b): return a + b\n```"
    assert task.grade(answer, task.held_out[0], truncated=False).correct
    reference = load(LiveCodeBench(source=source, grader="code_reference"))
    assert "def add(a: int" in reference.held_out[0].messages[0]["content"]


def test_livecodebench_uses_the_problems_that_are_asked_for(tmp_path, sandboxed):
    rows = [problem(d) for d in ("2025-01-31", "2025-02-01", "2025-04-30", "2025-05-01")]
    source = write(tmp_path / "rows.jsonl", rows)
    both = [e.id for e in load(LiveCodeBench(source=source)).train]
    task = load(LiveCodeBench(source=source, problems=(both[1],)))
    assert [e.id for e in task.train] == [e.id for e in task.held_out] == [both[1]]
    with pytest.raises(UserError, match=rf"task.problems is .*: {both[0]}, {both[1]}$"):
        load(LiveCodeBench(source=source, problems=(both[1], "-1")))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            problem("2025-03-01", private_test_cases="!!"),
            "field 'private_test_cases' cannot be read",
        ),
        (problem("2025-03-01", private_test_cases=packed([])), "cannot be read"),
        ({"prompt": "p", "tests": "{}"}, "has no usable tests"),
        ({"prompt": "p"}, "has the columns prompt; needs question_content"),
    ],
)
def test_a_livecodebench_row_that_cannot_be_read_is_named(tmp_path, sandboxed, row, says):
    source = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError) as error:
        load(LiveCodeBench(source=source))
    assert f"{source}:1: " in str(error.value) and says in str(error.value)


def test_a_pickle_that_is_more_than_a_text_is_refused():
    # A pickle that would call os.system, as a data file could hold one.
    hostile = b"cos\nsystem\n(S'true'\ntR."
    assert next(op.name for op, _, _ in pickletools.genops(hostile)) == "GLOBAL"
    with pytest.raises(ValueError, match="more than a text"):
        pickled_text(hostile)
    text = b"caf\xc3\xa9"
    assert pickled_text(PICKLED % (len(text).to_bytes(8, "little"), text)) == "café"
