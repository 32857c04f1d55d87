"""Everything a run needs to go on exactly, saved without stopping it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.learner.state import TrainState


class Checkpoints:
    """The checkpoints of one run: `state` (arrays) and `host` (JSON: data position, history)."""

    def __init__(self, folder: Any, cfg: config.Checkpoint) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=cfg.keep, create=True)
        # Orbax wants absolute paths; one in a bucket is.
        at = folder.absolute() if isinstance(folder, Path) else folder
        self._manager = ocp.CheckpointManager(at, options=options)
        self._folder = folder

    def newest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
        """Starts saving; the state's arrays are copied before this returns.

        Frozen parameters are not kept: they are those that the run loaded.
        """
        state = replace(state, frozen=None)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),  # type: ignore[call-arg]
                host=ocp.args.JsonSave(host),  # type: ignore[call-arg]
            ),
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state, placed as `like` (abstract, with shardings), and the JSON part.

        The state is without frozen parameters.
        """
        like = replace(like, frozen=None)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like),  # type: ignore[call-arg]
                    host=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, FileNotFoundError) as e:
            first = str(e).strip().splitlines()[0][:300]
            raise UserError(
                f"checkpoint {self._folder / str(step)} does not fit this config: {first}; "
                "resume with the model, teacher and optimizer it was made with"
            ) from e
        return restored["state"], restored["host"]

    def host(self, step: int) -> dict[str, Any]:
        """Returns the JSON part of a checkpoint."""
        only = ocp.args.Composite(host=ocp.args.JsonRestore())  # type: ignore[call-arg]
        return self._manager.restore(step, args=only)["host"]

    def params(self, step: int, like: nnx.State) -> nnx.State:
        """Returns only the trained parameters, placed as `like` (abstract, with shardings)."""
        restore = ocp.args.PyTreeRestore(  # type: ignore[call-arg]
            item={"params": like},
            restore_args={"params": ocp.checkpoint_utils.construct_restore_args(like)},
            partial_restore=True,
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=restore))
        return restored["state"]["params"]

    def close(self) -> None:
        """Waits until the last save is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract(state: TrainState, shardings: TrainState) -> TrainState:
    """Returns shapes, dtypes and shardings of a state: what `restore` needs."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
