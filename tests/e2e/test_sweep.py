"""The sweep: what it varies, what it resumes, what it shows; and data.limit."""

import json
from dataclasses import replace

import pytest
from runs import lines
from sums import SUMS
from sums import job as training

from sdjax import config
from sdjax.analysis import coverage
from sdjax.jobs import sweep_job, train_job

pytestmark = pytest.mark.usefixtures("compiled_once")


def job(model, out, **changes) -> config.Sweep:
    """Returns a sweep of SDPO and GRPO on 1 and 3 questions, with one step each."""
    small = {
        "rollout": {"prompts_per_step": 2},
        "eval": {"every": 0, "examples": 2, "batch": 2},
        "checkpoint": {"every": 1, "export": False},
        "log": {"to": (), "alternatives_of": 0, "progress": False},
    }
    sdpo = training(model, "", steps=1, **small)
    sdpo = replace(sdpo, out_of_domain={"longer": replace(SUMS, held_out=2)})
    grpo = replace(sdpo, loss=config.Loss(distillation=0.0))
    base = config.Sweep(out=str(out), runs={"sdpo": sdpo, "grpo": grpo}, values=(1, 3))
    return replace(base, **changes)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "sweep"
    sweep_job.run(job(model, out))
    return out


@pytest.mark.heavy
def test_a_sweep_trains_every_run_on_every_number_of_questions(finished):
    for name in ("sdpo", "grpo"):
        for value in (1, 3):
            folder = finished / name / str(value)
            assert json.loads((folder / "config.json").read_text())["data"]["limit"] == value
            rollouts = lines(folder / "rollouts.jsonl")
            # A step has two prompts, so a single question is in two groups.
            assert len({r["id"] for r in rollouts}) == min(value, 2) and len(rollouts) == 2 * 4
    figures = json.loads((finished / "coverage.json").read_text())
    ran = [(row["run"], row["value"]) for row in figures["trainings"]]
    assert ran == [("sdpo", 1), ("grpo", 1), ("sdpo", 3), ("grpo", 3)]


@pytest.mark.heavy
def test_the_comparison_has_the_figures_of_the_runs(finished):
    figures = json.loads((finished / "coverage.json").read_text())
    for row in figures["trainings"]:
        folder = finished / row["run"] / str(row["value"])
        first, last = json.loads((folder / "evaluations.json").read_text())
        for name, evaluation in (("before", first), ("after", last)):
            for part, of in (("in domain", evaluation), *evaluation["out_of_domain"].items()):
                assert row[name][part]["score"] == of["accuracy"]["avg@2"]["value"]
                assert row[name][part]["tokens"] == of["lengths"]["mean"]
        assert row["trained"] == lines(folder / "metrics.jsonl")[-1]["rollout/correct"]
    table = (finished / "coverage.md").read_text().splitlines()
    assert table[0].startswith("| training | data.limit | score on its own questions | in domain:")
    assert [line.split("|")[1].strip() for line in table[2:]] == ["before", *["sdpo", "grpo"] * 2]


@pytest.mark.heavy
def test_a_resumed_sweep_runs_only_what_is_not_finished(finished, model, tmp_path, monkeypatch):
    before = (finished / "coverage.md").read_bytes()
    run, ran = train_job.run, []

    def counted(cfg):
        ran.append((cfg.out, cfg.resume))
        run(cfg)

    monkeypatch.setattr(train_job, "run", counted)
    sweep_job.run(job(model, finished, resume=True))
    assert ran == [] and (finished / "coverage.md").read_bytes() == before
    (finished / "grpo" / "1" / "evaluations.json").unlink()  # as if it had been interrupted
    sweep_job.run(job(model, finished, resume=True))
    assert ran == [(str(finished / "grpo" / "1"), True)]
    assert (finished / "coverage.md").read_bytes() == before


@pytest.mark.heavy
def test_a_sweep_with_other_trainings_is_not_mixed_with_the_first(finished, model):
    with pytest.raises(config.UserError, match="holds a run; pass --resume"):
        sweep_job.run(job(model, finished))
    changed = job(model, finished, resume=True)
    runs = {name: replace(one, seed=7) for name, one in changed.runs.items()}
    with pytest.raises(config.UserError, match=r"sdpo/1 was made with other fields: seed 0 -> 7; "):
        sweep_job.run(replace(changed, runs=runs))


@pytest.mark.parametrize(
    ("axis", "values", "says"),
    [
        ("data.limits", (1,), r"axis is 'data.limits': no field 'limits'; there are seed, limit"),
        ("optim", (1,), r"values has 1: optim is 1: must be Optim"),
        (
            "data.limit",
            ("many",),
            r"values has 'many': data.limit is 'many': must be int",
        ),
        ("optim.lr", (-1.0,), r"optim.lr is -1.0: must not be negative"),
    ],
)
def test_what_cannot_be_varied_is_named_before_anything_runs(model, tmp_path, axis, values, says):
    with pytest.raises(config.UserError, match=says):
        sweep_job.run(job(model, tmp_path / "sweep", axis=axis, values=values))
    assert not (tmp_path / "sweep").exists()


def test_any_field_can_be_varied_also_a_task_of_another_domain(model, tmp_path):
    for axis, value in (("optim.lr", 0.5), ("out_of_domain.longer.held_out", 5)):
        ((_, _, one), _) = sweep_job.trainings(job(model, tmp_path, axis=axis, values=(value,)))
        found = one
        for name in axis.split("."):
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        assert found == value and one.out == str(tmp_path / "sdpo" / str(value))


def test_a_run_that_never_ended_cannot_be_compared(tmp_path):
    with pytest.raises(config.UserError, match="is no finished training"):
        coverage.of_run(tmp_path)
