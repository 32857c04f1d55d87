"""Metrics and alarms of a run: docs/metrics.md lists every metric, and alarms are raised."""

import json
import re
from dataclasses import replace

import pytest
import tiny
from parity import Parity, page
from runs import lines
from sums import job

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job, train_job
from sdjax.training import alerts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the directory of a run and its output: its alarm stops it at step 2 of 4.

    The other task finds all 8 answers of the first evaluation right, and none of the second.
    """
    folder = tmp_path_factory.mktemp("run")
    model = tiny.model_folder(folder / "tiny", sharper=4, num_hidden_layers=1)
    lexicon = folder / "words.json"
    lexicon.write_text(json.dumps({"letter": [chr(c) for c in range(97, 123)], "digit": ["7"]}))
    cfg = job(
        model,
        folder / "out",
        lexicon=str(lexicon),
        loss={"distillation": 0.5},
        reprompt={"regenerate": True},
        optim={"minibatches": 2, "lr": 1e-4},
        eval={"every": 2, "k": 2, "examples": 4, "batch": 4, "fork_rate": True},
        checkpoint={"every": 3},
        alarm={"ood_drop": 0.9, "epistemic_drop": 0.0, "fork_drop": 0.0, "stop": True},
        log={"alternatives_of": 0},
    )
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *args, **_: said.append(" ".join(map(str, args))))
        train_job.run(replace(cfg, task=Parity(), out_of_domain={"other": Parity(right_until=8)}))
    return folder / "out", said


@pytest.mark.heavy
def test_every_metric_of_a_run_is_on_the_page_and_the_reverse(run):
    out, _ = run
    written = {name for row in lines(out / "metrics.jsonl") for name in row} - {"step"}
    known = page()
    found = {name: [c for c, p in known.items() if p.fullmatch(name)] for name in written}
    assert {name: cells for name, cells in found.items() if len(cells) != 1} == {}
    assert set(known) - {cell for cells in found.values() for cell in cells} == set()


@pytest.mark.heavy
def test_an_alarm_ends_the_run_with_checkpoint_export_and_a_line(run):
    out, said = run
    metrics = lines(out / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [0, 1, 2]
    assert metrics[0]["ood/other/avg@2"] == 1 and metrics[2]["ood/other/avg@2"] == 0
    assert metrics[2]["alarm/ood_drop"] == metrics[2]["alarm/raised"] == 1
    assert "alarm/raised" not in metrics[0] and "alarm/raised" not in metrics[1]
    assert {p.name for p in (out / "checkpoints").iterdir()} >= {"2"}
    assert (out / "model" / "config.json").exists()
    assert [e["step"] for e in json.loads((out / "evaluations.json").read_text())] == [0, 2]
    (warned,) = [line for line in said if "alarm: " in line]
    assert warned == (
        "warning: step 2: alarm: the out-of-domain score fell by 100% from the start, 1 to 0 "
        "(other); alarm.ood_drop is 0.9"
    )
    assert "stopped by alarm.stop after step 2 of 4" in said


@pytest.mark.heavy
def test_the_closing_table_shows_epistemic_words_in_and_out_of_domain(run):
    _, said = run
    table = said[-1]
    assert "before |" in table and "| held-out avg@2" in table
    for row in ("words a response", "words per 1,000 tokens"):
        assert f"| epistemic {row}" in table and f"| other epistemic {row}" in table


def test_a_lexicon_that_is_not_there_is_an_error_before_anything_is_read(tmp_path):
    given = {"out": str(tmp_path / "out"), "task": Parity(), "lexicon": "nowhere.json"}
    model = config.Model(path=str(tmp_path / "no model"))
    for kind, run_it in ((config.Train, train_job.run), (config.Evaluate, evaluate_job.run)):
        with pytest.raises(UserError, match=r"epistemic lexicon 'nowhere\.json': no such file"):
            run_it(kind(**given, model=model))
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_rates_are_split_by_grade_in_rollouts_and_in_evaluations(run):
    out, _ = run
    rows = [r for r in lines(out / "rollouts.jsonl") if r["step"] == 1]
    metrics = lines(out / "metrics.jsonl")[1]
    for part in (True, False):
        own = [r for r in rows if r["correct"] == part]
        letters = sum(len(re.findall(r"(?<!\w)[a-z7](?!\w)", r["completion"].lower())) for r in own)
        end = "correct" if part else "wrong"
        assert metrics[f"rollout/epistemic_per_response_{end}"] == pytest.approx(letters / len(own))
        tokens = sum(r["length"] for r in own)
        rate = metrics[f"rollout/epistemic_per_1000_tokens_{end}"]
        assert rate == pytest.approx(1000 * letters / tokens) and letters
    first = json.loads((out / "evaluations.json").read_text())[0]
    other = first["out_of_domain"]["other"]
    assert other["epistemic_wrong"] is None and other["epistemic_correct"] == other["epistemic"]
    assert other["epistemic"].keys() >= {"letter", "digit"}


def figures(rate, other_rate=1.0, score=0.5, forks=()):
    def of(per_1000, avg, forks):
        accuracy = {"examples": 4, "avg@2": {"value": avg}, "pass@1": {"value": 1.0}}
        found = {"epistemic": {"per_1000_tokens": per_1000}, "accuracy": accuracy}
        return found | ({"forks": {"rate": forks[0]}} if forks else {})

    return of(rate, 0.9, forks) | {"out_of_domain": {"far": of(other_rate, score, forks[1:])}}


@pytest.mark.parametrize(
    ("last", "drops", "raised"),
    [
        (figures(8.0), (0.2, 0.0), []),
        (figures(3.9), (0.61, 0.0), ["epistemic_drop"]),
        (figures(12.0, other_rate=0.4), (0.6, 0.0), ["epistemic_drop"]),
        (figures(20.0, 2.0, score=0.3), (-1.0, 0.4), ["ood_drop"]),
        (figures(0.0, 0.0, score=0.0), (1.0, 1.0), ["epistemic_drop", "ood_drop"]),
    ],
)
def test_an_alarm_is_raised_where_a_set_falls_by_the_share(last, drops, raised):
    found = alerts.check_alarms([figures(10.0), figures(99.0), last], config.Alarm())
    assert list(found.warnings) == raised
    assert found.metrics["alarm/epistemic_drop"] == pytest.approx(drops[0])
    assert found.metrics["alarm/ood_drop"] == pytest.approx(drops[1])
    assert found.metrics["alarm/raised"] == bool(raised)
    assert all("\n" not in text and "alarm." in text for text in found.warnings.values())
    off = alerts.check_alarms([figures(10.0), last], config.Alarm(epistemic_drop=0, ood_drop=0))
    assert off.warnings == {} and off.metrics["alarm/ood_drop"] == pytest.approx(drops[1])


def test_an_alarm_is_raised_where_a_fork_rate_falls_and_what_it_does_is_the_config_s():
    start, end = figures(10.0, forks=(0.2, 0.1)), figures(10.0, forks=(0.19, 0.04))
    for alarm, ends_run, teacher_off in (
        (config.Alarm(), False, False),
        (config.Alarm(stop=True), True, False),
        (config.Alarm(teacher_off=True), False, True),
    ):
        found = alerts.check_alarms([start, end], alarm)
        assert found.metrics["alarm/fork_drop"] == pytest.approx(0.6)
        assert found.warnings == {
            "fork_drop": "alarm: the fork rate fell by 60% from the start, 0.1 to 0.04 (far); "
            "alarm.fork_drop is 0.5"
        }
        assert (found.ends_run, found.teacher_off) == (ends_run, teacher_off)
    off = alerts.check_alarms([start, end], config.Alarm(fork_drop=0, teacher_off=True))
    assert off.warnings == {} and not off.teacher_off and off.metrics["alarm/fork_drop"] > 0.5
    # A resumed run may measure it in some of its evaluations only.
    for ends in ([figures(10.0), end], [start, figures(10.0)]):
        assert "alarm/fork_drop" not in alerts.check_alarms(ends, config.Alarm()).metrics


def test_what_was_nothing_at_the_start_cannot_fall():
    start, end = (figures(0.0, 0.0, score=0.0) for _ in range(2))
    assert alerts.check_alarms([start, end], config.Alarm()).metrics == {"alarm/raised": 0.0}
    del start["out_of_domain"], end["out_of_domain"]
    assert alerts.check_alarms([start, end], config.Alarm()).metrics == {"alarm/raised": 0.0}


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(value):
    with pytest.raises(UserError, match=r"alarm\.ood_drop is .*must lie in \[0, 1\]"):
        config.Alarm(ood_drop=value)
