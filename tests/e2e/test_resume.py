"""A resumed run writes the same bytes as an uninterrupted one."""

import json
import tempfile
import time
from pathlib import Path

import other_process
import pytest
import runs

from sdjax.jobs import train_job
from sdjax.training import host_step

pytestmark = pytest.mark.usefixtures("compiled_once")

KINDS = {
    "live": {"teacher": {"kind": "live"}},
    "initial": {"teacher": {"kind": "initial"}},
    "on the host": {"teacher": {"kind": "initial", "location": "host"}},
    "ema": {"teacher": {"kind": "ema", "ema_rate": 0.3}, "log": {"alternatives": 5}},
    "trust_region": {"teacher": {"kind": "trust_region", "mix": 0.2}},
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
HEAVY = ("trust_region", "on the host", "regenerated")


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


def on_eight_devices(model, kinds):
    """Runs the comparison on a mesh of data x fsdp x tensor."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    with runs.compiled_once():
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                interrupted_equals_whole(Path(model), Path(folder), kind, mesh=mesh)
            print("equal:", kind)


def equal_on_eight_devices(model, kinds):
    code = f"import test_resume; test_resume.on_eight_devices({str(model)!r}, {kinds})"
    printed = other_process.on_eight_devices(code).splitlines()
    assert [line for line in printed if line.startswith("equal")] == [f"equal: {k}" for k in kinds]


@pytest.mark.heavy
def test_on_eight_devices_too(model):
    equal_on_eight_devices(model, ["ema", "grpo"])


@pytest.mark.slow
def test_on_eight_devices_with_the_other_teachers_too(model):
    equal_on_eight_devices(model, [kind for kind in KINDS if kind not in ("ema", "grpo")])
