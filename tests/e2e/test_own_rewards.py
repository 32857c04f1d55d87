"""Questions with rewards of the user in every job: evaluate, train, resume, study and report."""

import json
from dataclasses import replace

import pytest
import sums
from runs import lines

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job, report_job, study_job, train_job
from sdjax.tasks.questions import Questions

pytestmark = pytest.mark.usefixtures("compiled_once")

# What the user brings, and whether the grades have answers that vote.
KINDS = {
    "an own reward over answers": ({"reward": "rewards_of_users:odd"}, True),
    "an own grader": ({"grader": "rewards_of_users:odd"}, False),
    "rows without answers": ({"reward": "rewards_of_users:odd"}, False),
    "several of each kind": (
        {"rewards": {"grader": 1.0, "rewards_of_users:odd": 0.5, "rewards_of_users:trl": 0.1}},
        True,
    ),
}


def task(folder, kind):
    file = folder / "rows.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1), "level": i} for i in range(12)]
    if kind == "rows without answers":
        rows = [{"prompt": row["question"], "level": row["level"]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Questions(train=str(file), held_out=3, **KINDS[kind][0])


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_every_job_runs_with_what_the_user_brings(kind, model, tmp_path):
    own, votes = task(tmp_path, kind), KINDS[kind][1]
    evaluated = sums.evaluation(model, tmp_path / "evaluate", task=own, out_of_domain={"own": own})
    evaluate_job.run(evaluated)
    scores = json.loads((tmp_path / "evaluate" / "scores.json").read_text())
    assert ("maj@2" in scores["accuracy"]) == votes
    assert len(lines(tmp_path / "evaluate" / "answers.jsonl")) == 12

    run = tmp_path / "train"
    changes = {"eval": {"every": 1, "examples": 3, "batch": 3}, "checkpoint": {"export": False}}
    job = sums.job(model, run, task=own, steps=1, **changes)
    train_job.run(job)
    rollouts = lines(run / "rollouts.jsonl")
    assert len(rollouts) == 16
    named = {name for row in rollouts for name in row["details"].get("rewards", {})}
    assert named == own.all_rewards().keys()
    for row in rollouts:
        if kind == "several of each kind":
            parts = row["details"]["rewards"]
            level = parts["rewards_of_users:trl"] or 0
            expected = parts["grader"] + 0.5 * parts["rewards_of_users:odd"] + 0.1 * level
        else:
            expected = len(row["completion"]) % 2
        assert row["reward"] == pytest.approx(expected)
    metrics = [row for row in lines(run / "metrics.jsonl") if "eval/avg@2" in row]
    assert len(metrics) == 2 and ("eval/maj@2" in metrics[-1]) == votes
    recorded = json.loads((run / "config.json").read_text())["task"]
    assert (recorded["reward"], recorded["rewards"]) == (own.reward, own.rewards)

    train_job.run(replace(job, steps=2, resume=True))
    assert len(lines(run / "rollouts.jsonl")) == 32
    with pytest.raises(UserError, match=r"task\.reward"):
        other = replace(own, reward="rewards_of_users:level", rewards={})
        train_job.run(replace(job, task=other, steps=3, resume=True))

    # A study needs questions that are sometimes right, which a grader of the user decides.
    odd = replace(own, rewards={}, reward="rewards_of_users:odd_grade")
    study_job.run(sums.study(model, tmp_path / "study", task=odd, tried=8))
    assert len(lines(tmp_path / "study" / "trajectories.jsonl")) == 1

    report_job.run(config.Report(runs=(str(run),), out=str(tmp_path / "report.html")))
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.heavy
def test_a_reward_that_fails_in_a_step_ends_the_run_with_its_row(model, tmp_path):
    own = replace(task(tmp_path, "an own reward over answers"), reward="rewards_of_users:fails")
    job = sums.job(model, tmp_path / "train", task=own, steps=1, eval={"examples": 3, "batch": 3})
    with pytest.raises(UserError, match=r"^rewards_of_users:fails, row \d+ of task\.train: KeyErr"):
        train_job.run(job)
