"""Every rule in every job: evaluate, train with evaluation, study and report."""

import json
from dataclasses import replace

import pytest
import sums
from ruled import CASES, Ruled
from runs import lines

from sdjax import config
from sdjax.jobs import evaluate_job, report_job, study_job, train_job

pytestmark = pytest.mark.usefixtures("compiled_once")
# Each kind of answer once; the other rules run with -m slow. test_votes has all rules without jobs.
SHORT = ("number", "math_reference", "tooluse")


@pytest.mark.parametrize(
    "rule",
    [pytest.param(r, marks=pytest.mark.heavy if r in SHORT else pytest.mark.slow) for r in CASES],
)
def test_every_job_runs_with_every_rule(rule, model, tmp_path, request):
    if rule.startswith("code"):
        request.getfixturevalue("sandboxed")
    task = Ruled(rule=rule)
    estimates = {"avg@2", "pass@2"} | (set() if rule.startswith("code") else {"maj@2"})

    evaluated = sums.evaluation(model, tmp_path / "evaluate", task=task, out_of_domain={})
    evaluate_job.run(evaluated)
    scores = json.loads((tmp_path / "evaluate" / "scores.json").read_text())
    assert {name for name in scores["accuracy"] if "@" in name} == estimates
    assert len(lines(tmp_path / "evaluate" / "answers.jsonl")) == 6

    run = tmp_path / "train"
    changes = {"eval": {"every": 1, "examples": 3, "batch": 3}, "checkpoint": {"export": False}}
    train_job.run(sums.job(model, run, task=task, steps=1, **changes))
    history = json.loads((run / "evaluations.json").read_text())
    assert [evaluation["step"] for evaluation in history] == [0, 1]
    metrics = [row for row in lines(run / "metrics.jsonl") if "eval/avg@2" in row]
    assert len(metrics) == 2
    assert all({f"eval/{name}" for name in estimates} <= row.keys() for row in metrics)
    assert ("eval/maj@2" in metrics[-1]) == (not rule.startswith("code"))
    assert len(lines(run / "rollouts.jsonl")) == 16

    study_job.run(sums.study(model, tmp_path / "study", task=replace(task, half_right=True)))
    assert len(lines(tmp_path / "study" / "trajectories.jsonl")) == 1

    report_job.run(config.Report(runs=(str(run),), out=str(tmp_path / "report.html")))
    assert (tmp_path / "report.html").stat().st_size > 1000
