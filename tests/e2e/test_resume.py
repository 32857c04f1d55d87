"""A resumed run is the same run: to the same bytes, and with the same config and data."""

import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import other_process
import pytest
import runs
import tiny

from sdjax.errors import UserError
from sdjax.jobs import train_job
from sdjax.training import host_step, loaded_model

pytestmark = pytest.mark.usefixtures("compiled_once")

KINDS = {
    "live": {"teacher": {"kind": "live"}},
    "initial": {"teacher": {"kind": "initial"}},
    "on the host": {"teacher": {"kind": "initial", "location": "host"}},
    "ema": {"teacher": {"kind": "ema", "ema_rate": 0.3}, "log": {"alternatives": 5}},
    "trust_region": {"teacher": {"kind": "trust_region", "mix": 0.2}},
    "refreshed": {"teacher": {"kind": "refreshed", "every": 2}},
    "another model": {"teacher": {"kind": "model"}, "target": {"context": "plain"}},
    "another model of adapters": {
        "teacher": {"kind": "model", "location": "host"},
        "lora": {"rank": 2},
    },
    "several contexts": {"target": {"rule": "pointwise_information"}},
    "regenerated": {"reprompt": {"regenerate": True, "success_threshold": 0.9}},
    "grpo": {"loss": {"distillation": 0.0}, "optim": {"minibatches": 2}},
}


class Killed(BaseException):
    """Ends a run in this process as a kill would."""


def kill_in(patch, name, call, after):
    """Makes the function `name` of host_step end the run after call number `call`.

    It waits for the checkpoint `after`, because its saving thread goes on unlike after a kill.
    """
    function, calls = getattr(host_step, name), []

    def called(*args):
        returned = function(*args)
        calls.append(name)
        if len(calls) == call:
            while not after.exists():
                time.sleep(0.01)
            raise Killed
        return returned

    patch.setattr(host_step, name, called)


def interrupted_equals_whole(model, folder, kind, **changes):
    """Runs a config whole, and in two parts with a kill in step 5 of 6."""
    changes |= KINDS[kind]
    if changes.get("teacher", {}).get("kind") == "model":
        wide = {"hidden_size": 48, "num_attention_heads": 6, "vocab_size": tiny.VOCABULARY + 24}
        other = tiny.model_folder(folder / "teacher", "llama", seed=1, **wide)
        changes["teacher"] = changes["teacher"] | {"path": str(other)}
    whole, parts = folder / "whole", folder / "parts"
    train_job.run(runs.job(model, whole, **changes))
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, "take_updates", 5, after=parts / "checkpoints" / "3")
        with pytest.raises(Killed):
            train_job.run(runs.job(model, parts, **changes))
    assert [row["step"] for row in runs.lines(parts / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    train_job.run(runs.job(model, parts, resume=True, **changes))
    runs.assert_equal(whole, parts)
    return whole


# "initial" stands under "on the host" too; GRPO has no teacher's state, as live, and runs below.
SLOW = ("live", "initial", "grpo")
HEAVY = (
    *("ema", "trust_region", "refreshed", "another model", "another model of adapters"),
    *("several contexts", "on the host", "regenerated"),
)


def rare(kind):
    return [pytest.mark.slow] * (kind in SLOW) + [pytest.mark.heavy] * (kind in HEAVY)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=rare(k)) for k in KINDS])
def test_three_steps_a_kill_and_three_steps_equal_six_to_the_byte(model, tmp_path, kind):
    whole = interrupted_equals_whole(model, tmp_path, kind)
    metrics = runs.lines(whole / "metrics.jsonl")
    assert [m["step"] for m in metrics if "eval/avg@2" in m] == [0, 2, 4, 6]
    # Every update moves the parameters, so a lost update would show.
    assert all(m["optim/grad_norm"] > 0 for m in metrics[1:])
    history = json.loads((whole / "evaluations.json").read_text())
    assert [row["step"] for row in history] == [0, 2, 4, 6]
    if kind.startswith("another model"):
        assert not [n for n in runs.arrays(whole / "checkpoints" / "6") if "teacher" in n]
        assert all(m["distill/divergence"] > 0 for m in metrics[1:])


@pytest.mark.heavy
def test_a_teacher_that_an_alarm_switched_off_stays_off_after_a_kill(tmp_path, capsys):
    sharp = tiny.model_folder(tmp_path / "sharp", sharper=4, num_hidden_layers=1)
    asked = {
        "eval": {"fork_rate": True, "k": 4, "max_completion_tokens": 16},
        "alarm": {"fork_drop": 0.05, "teacher_off": True},
        "optim": {"lr": 3e-3},
    }
    whole = interrupted_equals_whole(sharp, tmp_path, "initial", **asked)
    metrics = runs.lines(whole / "metrics.jsonl")
    assert metrics[2]["alarm/raised"] == 1 and metrics[2]["alarm/fork_drop"] >= 0.05
    taught = ["distill/divergence" in row for row in metrics[1:]]
    assert taught == ["loss/distillation" in row for row in metrics[1:]] == [True] * 2 + [False] * 4
    assert ["loss/policy" in row for row in metrics[1:]] == [not with_it for with_it in taught]
    said = "warning: step 2: the teacher is off from step 3 on: alarm.teacher_off"
    assert capsys.readouterr().out.splitlines().count(said) == 2  # of the whole run and of parts
    # From there on the run is one of rewards alone.
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone)
    shutil.rmtree(alone / "checkpoints" / "6")
    asked |= {"loss": {"distillation": 0.0}, "alarm": {}}
    changes = {"resume": True, "allow": ("loss.distillation",), "teacher": {"kind": "initial"}}
    train_job.run(runs.job(sharp, alone, **asked, **changes))
    ours, theirs = (runs.arrays(run / "checkpoints" / "6") for run in (whole, alone))
    assert ours and all(array.tobytes() == theirs[name].tobytes() for name, array in ours.items())


ATTENTION = {"rank": 2, "matrices": ("q", "k", "v", "o")}


@pytest.mark.heavy
def test_a_model_of_experts_is_resumed_too(tmp_path):
    model = tiny.model_folder(tmp_path / "experts", "qwen3_moe")
    whole = interrupted_equals_whole(model, tmp_path, "initial", lora=ATTENTION)
    metrics = runs.lines(whole / "metrics.jsonl")
    assert all(m["optim/grad_norm"] > 0 for m in metrics[1:])


def on_eight_devices(model, kinds, mesh=None):
    """Runs the comparison on a mesh, by default of data x fsdp x tensor."""
    mesh = mesh or {"data": 2, "fsdp": 2, "tensor": 2}
    with runs.compiled_once():
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                interrupted_equals_whole(Path(model), Path(folder), kind, mesh=mesh)
            print("equal:", kind)


def equal_on_eight_devices(model, kinds, mesh=None):
    code = f"import test_resume; test_resume.on_eight_devices({str(model)!r}, {kinds}, {mesh})"
    printed = other_process.on_eight_devices(code).splitlines()
    assert [line for line in printed if line.startswith("equal")] == [f"equal: {k}" for k in kinds]


@pytest.mark.slow
def test_on_eight_devices_too(model):
    equal_on_eight_devices(model, list(KINDS))


@pytest.mark.slow
def test_on_eight_devices_that_hold_experts_apart_too(tmp_path):
    model = tiny.model_folder(tmp_path / "experts", "qwen3_moe")
    equal_on_eight_devices(model, ["ema"], {"expert": 2, "fsdp": 2, "tensor": 2})


SMALL = {"checkpoint": {"every": 1}, "eval": {"at_ends": False, "every": 0}}


@pytest.fixture(scope="module")
def two_steps(model, tmp_path_factory):
    """Returns the directory of a run of two steps, and every file of its record."""
    out = tmp_path_factory.mktemp("run") / "two"
    train_job.run(runs.job(model, out, steps=2, **SMALL))
    return out, {name: (out / name).read_bytes() for name in ("config.json", "run.json")}


def unchanged(two_steps):
    out, files = two_steps
    return all((out / name).read_bytes() == whole for name, whole in files.items())


@pytest.mark.heavy
def test_changed_fields_are_refused_before_data_and_model_are_opened(model, two_steps, monkeypatch):
    monkeypatch.setattr(loaded_model, "open_model", lambda *_: pytest.fail("opened"))
    optim = {"lr": 3e-4, "microbatch": 4}
    changed = runs.job(model, two_steps[0], resume=True, steps=3, seed=4, optim=optim, **SMALL)
    with pytest.raises(UserError, match=r"seed 0 -> 4, optim.lr 0.001 -> 0.0003; .*--allow seed"):
        train_job.run(changed)
    assert unchanged(two_steps)


@pytest.mark.heavy
def test_a_finished_run_keeps_its_record_whatever_is_allowed(model, two_steps, capsys):
    out, _ = two_steps
    changed = runs.job(model, out, resume=True, allow=("seed",), steps=2, seed=4, **SMALL)
    train_job.run(changed)
    assert unchanged(two_steps)
    assert "step 2 of 2 is done: nothing is trained, nothing changes" in capsys.readouterr().out


@pytest.mark.heavy
def test_other_data_is_refused_before_the_weights_are_loaded(model, two_steps, monkeypatch):
    # As if rows of the file had changed: the same config gives other questions.
    monkeypatch.setattr(loaded_model.LoadedModel, "load", lambda _: pytest.fail("loaded"))
    task = runs.load(runs.Letters(held_out=4), None)
    other = replace(task, train=[*task.train[1:], replace(task.train[0], answer="x")])
    monkeypatch.setattr(train_job.tasks, "load", lambda *_: other)
    again = runs.job(model, two_steps[0], resume=True, steps=3, **SMALL)
    with pytest.raises(UserError, match=r"data 64 rows, sha256 \w+ -> 64 rows, .*--allow data"):
        train_job.run(again)
    assert unchanged(two_steps)


@pytest.mark.heavy
def test_an_allowed_change_is_said_recorded_with_its_step_and_trained_with(
    model, two_steps, tmp_path, capsys
):
    out = tmp_path / "out"
    shutil.copytree(two_steps[0], out)
    optim = {"lr": 3e-4, "warmup_steps": 0}
    allow = ("optim.lr",)
    train_job.run(runs.job(model, out, resume=True, allow=allow, steps=3, optim=optim, **SMALL))
    assert "changed from step 3 on: optim.lr 0.001 -> 0.0003\n" in capsys.readouterr().out
    rates = [row.get("optim/lr") for row in runs.lines(out / "metrics.jsonl")]
    assert rates[1:] == pytest.approx([1e-3, 1e-3, 3e-4])
    changes = json.loads((out / "run.json").read_text())["changes"]
    assert {"after": 2, "name": "optim.lr", "old": 1e-3, "new": 3e-4} in changes
    assert json.loads((out / "config.json").read_text())["optim"]["lr"] == 3e-4
    # Without evaluations there are none of their files and metrics.
    assert not (out / "evaluations.json").exists() and not (out / "answers").exists()
