"""Removed directories stay away, and removing a checkpoint takes no other one along."""

import json
import os
import shutil
from contextlib import suppress

import jax.numpy as jnp
import pytest
from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import lease
from sdjax.learner.checkpoint import CHECKSUMS, COMMITTED, Checkpoints
from sdjax.learner.state import TrainState


def state():
    params = nnx.State({"weight": nnx.Param(jnp.ones((8, 8)))})
    step = jnp.zeros((), jnp.int32)
    return TrainState(step=step, params=params, frozen=None, teacher_params=None, opt_state=())


@pytest.fixture
def out(tmp_path):
    """Returns a directory that this process owns."""
    out = tmp_path / "runs" / "a"
    out.mkdir(parents=True)
    lease.take(out)
    yield out
    lease.release(out)


def test_a_save_does_not_bring_back_a_directory_that_is_gone(out):
    saved = Checkpoints(out / "checkpoints", config.Checkpoint())
    saved.save(1, state(), {"at": 1})
    saved.wait()
    assert saved.steps() == [1]
    shutil.rmtree(out)
    with pytest.raises(UserError, match=f"{out}: was removed"):
        saved.save(2, state(), {"at": 2})
    assert not out.exists() and out.parent.exists()


@pytest.mark.parametrize("then", ["nothing", "comes back", "OSError", "ValueError"])
def test_a_directory_that_goes_during_a_save_does_not_come_back(out, monkeypatch, then):
    seal = Checkpoints._seal

    def removed(saved):
        """Removes the directory when all but the checksums is written."""
        shutil.rmtree(out)
        if then == "comes back":  # as if Orbax had not written everything yet
            (out / "checkpoints" / "1.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
        if then == "OSError":
            raise FileNotFoundError(2, "No such file or directory")
        if then == "ValueError":  # which Orbax raises where a part of its own is gone
            raise ValueError("No ArrayMetadata found")
        seal(saved)

    monkeypatch.setattr(Checkpoints, "_seal", removed)
    saved = Checkpoints(out / "checkpoints", config.Checkpoint())
    saved.save(1, state(), {"at": 1})
    with pytest.raises(UserError, match=f"{out}: was removed"):
        saved.wait()
    assert not out.exists() and out.parent.exists()


class Killed(BaseException):
    pass


def stored(folder, **facts):
    """Makes what a whole checkpoint leaves on the disk, without its arrays."""
    for name in ("state/a", "state/b", "host/metadata", COMMITTED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / CHECKSUMS).write_text(json.dumps(facts | {"files": {}}))


@pytest.mark.parametrize("fatal", range(9))
def test_a_kill_while_a_checkpoint_is_removed_costs_no_other_one(tmp_path, monkeypatch, fatal):
    stored(tmp_path / "3")
    stored(tmp_path / "5", passing=True)
    stored(tmp_path / "6")
    removals = []

    def dying(function):
        def remove(*args, **kwargs):
            removals.append(args)
            if len(removals) > fatal:
                raise Killed
            return function(*args, **kwargs)

        return remove

    with monkeypatch.context() as patch:
        for name in ("unlink", "remove", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with suppress(Killed):
            Checkpoints(tmp_path, config.Checkpoint(keep=2)).close()
    assert len(removals) == min(fatal + 1, 8)
    Checkpoints(tmp_path, config.Checkpoint(keep=2)).close()
    assert sorted(os.listdir(tmp_path)) == ["3", "6"]
