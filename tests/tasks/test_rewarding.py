"""Rewards of a config over the grader of a task: any reader, weights, votes, the command line."""

import json

import pytest

from sdjax import config, tasks
from sdjax.config.load import load, override
from sdjax.errors import UserError
from sdjax.io import run_record
from sdjax.records import Completion, Group
from sdjax.tasks.countdown import Countdown
from sdjax.tasks.livecodebench import LiveCodeBench
from sdjax.tasks.math import Math
from sdjax.tasks.questions import Questions
from sdjax.tasks.sciknoweval import SciKnowEval
from sdjax.tasks.tooluse import ToolUse

ROWS = [{"question": f"q{i}", "answer": str(i), "level": i} for i in range(1, 5)]
TESTS = {"testtype": "stdin", "fn_name": "", "inputs": ["1"], "outputs": ["1"], "time_limit": 2}
CALLS = [{"Action": "f", "Action_Input": "{}"}]
OWN = {"reward": "rewards_of_users:level"}
READERS = {
    "math": lambda file, **f: Math(train=file, test="", held_out=1, **f),
    "questions": lambda file, **f: Questions(train=file, held_out=1, **f),
    "sciknoweval": lambda file, **f: SciKnowEval(train=file, held_out=1, **f),
    "tooluse": lambda file, **f: ToolUse(train=file, test="", held_out=1, **f),
    "livecodebench": lambda file, **f: LiveCodeBench(source=file, **f),
}
ANSWERS = {
    "sciknoweval": {"answer": "B"},
    "tooluse": {"answer": CALLS},
    "livecodebench": {"tests": json.dumps(TESTS), "prompt": "q"},
}


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def loaded(cfg, **data):
    return tasks.load(cfg, config.Data(**data))


@pytest.mark.parametrize("field", ["reward", "grader"])
@pytest.mark.parametrize("task", READERS)
def test_every_reader_takes_an_own_reward_and_an_own_grader(task, field, tmp_path, request):
    if task == "livecodebench":
        request.getfixturevalue("sandboxed")
    rows = [row | ANSWERS.get(task, {}) for row in ROWS]
    cfg = READERS[task](write(tmp_path / "r.jsonl", rows), **{field: "rewards_of_users:level"})
    made = loaded(cfg)
    assert not made.skipped  # An own function may read any column.
    grades = made.grade_many(["x"] * len(made.train), made.train, [False] * len(made.train))
    levels = [float(example.columns["level"]) for example in made.train]
    assert [g.reward for g in grades] == levels and max(levels) > 1
    # The task's grader says what is correct, unless the function is the grader.
    assert [g.correct for g in grades] == [field == "grader"] * len(grades)


def test_a_task_without_rows_takes_an_own_reward_too():
    made = loaded(Countdown(name="times", needs="*", held_out=2, reward="rewards_of_users:brevity"))
    grade = made.grade("1", made.held_out[0], truncated=False)
    assert (grade.reward, grade.correct) == (0.5, False)


def test_rewards_add_up_by_their_weights_and_are_kept_by_name(tmp_path):
    weights = {"grader": 1.0, "rewards_of_users:level": 0.25, "rewards_of_users:trl": -0.5}
    cfg = Math(train=write(tmp_path / "r.jsonl", ROWS), test="", held_out=0, rewards=weights)
    made = loaded(cfg)
    right, empty = made.grade_many([r"\boxed{3}", ""], [made.train[2]] * 2, [False] * 2)
    assert (right.correct, right.reward) == (True, 1 + 0.25 * 3 - 0.5 * 3)
    assert right.details["rewards"] == {
        "grader": 1.0,
        "rewards_of_users:level": 3,
        "rewards_of_users:trl": 3,
    }
    # TRL's None adds nothing.
    assert (empty.correct, empty.reward) == (False, 0.75)
    assert empty.details["rewards"]["rewards_of_users:trl"] is None
    assert right.details["prediction"] == "3"


def test_a_grade_of_a_reward_decides_what_is_correct_and_how_it_votes(tmp_path):
    cfg = Math(
        train=write(tmp_path / "r.jsonl", ROWS),
        test="",
        held_out=0,
        rewards={"rewards_of_users:brevity": 1.0, "rewards_of_users:asks": 2.0},
    )
    made = loaded(cfg)
    grade = made.grade("no", made.train[0], truncated=False)
    assert grade.correct and grade.reward == pytest.approx(1 / 3 + 3)
    assert grade.details["vote"] == "1" and grade.feedback.startswith("q1")


def test_equal_predictions_still_vote_together_under_a_reward(tmp_path):
    rows = [{"question": "q", "answer": "1/2"}]
    made = loaded(Math(train=write(tmp_path / "r.jsonl", rows), test="", held_out=0, **OWN | {
        "reward": "rewards_of_users:brevity"}))  # fmt: skip
    texts = [r"\boxed{x+1}", r"\boxed{1+x}"]
    grades = made.grade_many(texts, [made.train[0]] * 2, [False] * 2)
    completions = [Completion(tokens=[], logprobs=[], text=t, finish="stop") for t in texts]
    group = Group(
        example=made.train[0], prompt=[], completions=tuple(completions), grades=tuple(grades)
    )
    assert made.vote_spellings([group]) == [[None, "x+1"]]


def test_a_failure_that_scores_0_is_kept_with_its_name(tmp_path):
    cfg = Questions(
        train=write(tmp_path / "r.jsonl", [{"prompt": "q"}]),
        held_out=0,
        reward="rewards_of_users:fails",
        on_reward_error="zero",
    )
    made = loaded(cfg)
    grade = made.grade("x", made.train[0], truncated=False)
    assert (grade.reward, grade.correct) == (0.0, False)
    assert "KeyError: 'nothing'" in grade.details["failed"]["rewards_of_users:fails"]


def test_without_answers_a_reward_of_a_half_is_correct(tmp_path):
    file = write(tmp_path / "r.jsonl", [{"prompt": "q"}])
    made = loaded(Questions(train=file, held_out=0, reward="rewards_of_users:brevity"))
    grades = made.grade_many(["1", "123"], [made.train[0]] * 2, [False] * 2)
    assert [(g.reward, g.correct) for g in grades] == [(0.5, True), (0.25, False)]
    assert "prediction" not in grades[0].details  # so there is no maj@k
    for rewards in ({}, {"grader": 1.0, "rewards_of_users:brevity": 1.0}):
        with pytest.raises(UserError, match=r"answer"):
            loaded(Questions(train=file, held_out=0, rewards=rewards))


CONFIG = """
from sdjax.config import Model, Train
from sdjax.tasks.math import Math
def mine(completion, row):
    return float(row["level"])
config = Train(out="x", model=Model(path="m"), task=Math(train="r.jsonl", test="", held_out=1))
"""


def test_rewards_and_graders_are_named_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.jsonl", ROWS)
    (tmp_path / "c.py").write_text(CONFIG)
    arguments = ["--task.reward", "c.py:mine", "--task.grader", "rewards_of_users:asks"]
    job = override(load(tmp_path / "c.py"), arguments, prog="sdjax")
    made = tasks.load(job.task, job.data)
    grade = made.grade("x", made.held_out[0], truncated=False)
    assert grade.correct and grade.reward == made.held_out[0].columns["level"]
    public = config.to_public(job)["task"]
    assert (public["reward"], public["grader"]) == ("c.py:mine", "rewards_of_users:asks")


def test_a_weight_of_the_config_file_can_be_overridden(tmp_path):
    (tmp_path / "c.py").write_text(CONFIG.replace("held_out=1", "held_out=1, rewards={mine: 1}"))
    arguments = ["--task.rewards.c.py:mine", "0.5"]
    assert override(load(tmp_path / "c.py"), arguments, prog="x").task.rewards == {"c.py:mine": 0.5}


def test_a_resumed_run_is_held_to_its_rewards(tmp_path):
    def job(**fields):
        task = Math(train="r.jsonl", **fields)
        return config.Train(out="x", task=task, model=config.Model(path="m"))

    run_record.write(tmp_path, job(reward="a:b"), 0, {})
    assert run_record.check_config(tmp_path, job(reward="a:b"), 3) == []
    with pytest.raises(UserError, match=r"task.reward a:b -> a:c"):
        run_record.check_config(tmp_path, job(reward="a:c"), 3)
    judged = {"reward": "judge", "judge": config.Judge(url="http://h/v1", model="m")}
    patient = judged | {"judge": config.Judge(url="http://h/v1", model="m", timeout_s=9.0)}
    (tmp_path / "judged").mkdir()
    run_record.write(tmp_path / "judged", job(**judged), 0, {})
    changes = run_record.check_config(tmp_path / "judged", job(**patient), 3)
    assert [change.name for change in changes] == ["task.judge.timeout_s"]
    with pytest.raises(UserError, match=r"task.rewards.a:b"):
        run_record.check_config(tmp_path, job(rewards={"a:b": 2.0}), 3)
