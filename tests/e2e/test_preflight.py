"""The preflight: a page and figures in a folder, or one line about what is wrong."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import preflight_job

TRAINING = """
import runs
config = runs.job({model!r}, "unused")
"""
INFINITE = """
from dataclasses import dataclass, replace
import runs

@dataclass(frozen=True, kw_only=True)
class Infinite(runs.Letters):
    pass

def load(cfg, data):
    task = runs.load(cfg, data)
    def grader(attempts):
        return [replace(grade, reward=float("inf")) for grade in task.grader(attempts)]
    return replace(task, grader=grader)

config = replace(runs.job({model!r}, "unused"), task=Infinite(held_out=4))
"""


def job(folder, model, text=TRAINING, **fields):
    """Returns a preflight of 4 questions x 2 answers of six tokens."""
    file = folder / "training.py"
    file.write_text(text.format(model=str(model)))
    out = str(folder / "out")
    return config.Preflight(**{"train": str(file), "out": out, "questions": 4} | fields)


def numbers(value):
    """Yields every number of nested plain values."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def done(model, tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("preflight")
    careful = config.Instruction(instruction="Check each step.", max_tokens=160)
    cfg = job(
        folder,
        model,
        contexts={"careful": careful},
        only=("solution", "wrong", "careful", "plain"),
        topology="h200:1",
    )
    preflight_job.run(cfg)
    return cfg, json.loads((folder / "out" / "preflight.json").read_text())


def test_every_figure_is_finite_and_each_context_is_measured(done):
    _, found = done
    assert found["questions"] == 4 and found["answers"] == 2
    assert list(found["contexts"]) == ["solution", "wrong", "careful", "plain"]
    assert all(map(math.isfinite, numbers({k: v for k, v in found.items() if k != "training"})))
    for name in ("solution", "careful"):
        of = found["contexts"][name]
        assert of["groups"]["value"] == of["completions"] == 1.0
        assert of["kl"]["value"] > 1e-4 and of["gap"]["low"] <= of["gap"]["value"]
        assert of["cost"]["update_share"] > 1 and of["cost"]["step_s"] > 0
    # Every completion counts as a success here, so none has failed.
    wrong = found["contexts"]["wrong"]
    assert wrong["groups"]["value"] == 0 and wrong["gap"] is wrong["cost"] is None


def test_the_plain_context_is_the_student(done):
    plain = done[1]["contexts"]["plain"]
    assert plain["kl"]["value"] == pytest.approx(0, abs=1e-6) and plain["kl_on_doubt"] is None
    assert plain["student"] == done[1]["student"]
    assert plain["gap"]["low"] < 0 < plain["gap"]["high"]


def test_the_page_holds_the_recommendation_and_a_row_for_each_context(done):
    cfg, found = done
    page = (Path(cfg.out) / "preflight.md").read_text()
    assert page.count("**Recommendation.**") == 1 and found["recommendation"] in page
    assert page.count("| `careful` |") == 2 and len(page.splitlines()) < 40
    assert json.loads((Path(cfg.out) / "config.json").read_text())["questions"] == 4


def test_a_folder_with_a_preflight_is_refused(done):
    with pytest.raises(UserError, match="it holds a run; choose another --out"):
        preflight_job.run(done[0])


def test_rewards_that_are_not_finite_give_no_figure(model, tmp_path):
    with pytest.raises(UserError, match="the reward inf: it must be finite"):
        preflight_job.run(job(tmp_path, model, INFINITE))
    assert not (tmp_path / "out" / "preflight.json").exists()


def test_a_model_that_is_not_finite_gives_no_figure(tmp_path):
    folder = tiny.model_folder(tmp_path / "tiny", num_hidden_layers=1)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: np.full_like(x, np.nan) for name, x in tensors.items()}, file)
    with pytest.raises(UserError, match="not finite"):
        preflight_job.run(job(tmp_path, folder))
    assert not (tmp_path / "out" / "preflight.json").exists()


def test_a_sweep_stands_for_its_first_training_and_grpo_for_its_contexts(model, tmp_path):
    text = TRAINING + (
        "from dataclasses import replace\nfrom sdjax.config import Loss, Sweep\n"
        "config = Sweep(out='x', runs={{'a': replace(config, loss=Loss(distillation=0.0))}})"
    )
    cfg = job(tmp_path, model, text, change=("rollout.group_size=3",))
    train = preflight_job._training(cfg)
    assert (train.rollout.group_size, train.loss.distillation) == (3, 1.0)
    names = list(preflight_job._contexts(cfg, train))
    assert names == ["solution", "unrelated", "wrong", "feedback"]


@pytest.mark.slow
def test_a_right_solution_teaches_the_miniature_and_takes_its_doubt(tmp_path):
    cfg = config.Preflight(
        train="package:quickstart", out=str(tmp_path / "out"), questions=24, only=("solution",)
    )
    preflight_job.run(cfg)
    found = json.loads((tmp_path / "out" / "preflight.json").read_text())
    of = found["contexts"]["solution"]
    assert of["gap"]["low"] > 0.05 and of["teacher"]["right"]["value"] > 0.8
    assert of["teacher"]["doubt"]["value"] < 0.5 * of["student"]["doubt"]["value"]
    assert of["kl_on_doubt"]["value"] > of["tokens_on_doubt"]
    assert "takes doubt from" in found["recommendation"]
