"""A run directory that is removed does not come back with a checkpoint."""

import shutil

import jax.numpy as jnp
import pytest
from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import lease
from sdjax.learner.checkpoint import Checkpoints
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
