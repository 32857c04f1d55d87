"""What a run must keep to go on exactly: the train state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from sdjax.config import Teacher
from sdjax.parallel import rules
from sdjax.teacher import kinds


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Rounds done, float32 parameters, the teacher's (None: the student's), Adam's moments."""

    step: jax.Array  # int32[]
    params: nnx.State
    teacher_params: nnx.State | None
    opt_state: optax.OptState


def shardings(
    params: nnx.State, tx: optax.GradientTransformation, cfg: Teacher, mesh: Mesh
) -> TrainState:
    """Returns the sharding of every leaf of the state, given abstract params."""
    of_params = rules.param_shardings(params, mesh)
    scalar = rules.replicated(mesh)
    of_opt = optax.tree_utils.tree_map_params(
        tx,
        lambda _, s: s,
        jax.eval_shape(tx.init, params),
        of_params,
        transform_non_params=lambda _: scalar,
    )
    of_teacher = of_params if kinds.has_own_params(cfg) else None
    if cfg.location == "host":
        of_teacher = _in_memory(of_teacher, "pinned_host")
    return TrainState(
        step=scalar,  # type: ignore[arg-type]
        params=of_params,
        teacher_params=of_teacher,
        opt_state=of_opt,
    )


def teacher_on_device(state: TrainState, state_shardings: TrainState) -> nnx.State | None:
    """Returns the teacher's parameters where an update can read them, inside its jit.

    None where the teacher is the student.
    """
    on_device = _in_memory(state_shardings.teacher_params, "device")
    return jax.device_put(state.teacher_params, on_device)


def _in_memory(
    of_params: nnx.State | None, kind: Literal["device", "pinned_host"]
) -> nnx.State | None:
    """Returns the shardings, each in that memory of its devices."""
    return jax.tree.map(lambda s: s.with_memory_kind(kind), of_params)


def initialiser(
    tx: optax.GradientTransformation, cfg: Teacher, state_shardings: TrainState
) -> Callable[[nnx.State], TrainState]:
    """Returns the jitted function from loaded params to the state of step 0."""

    def init(params: nnx.State) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            teacher_params=kinds.initial_params(params, cfg),
            opt_state=tx.init(params),
        )

    return jax.jit(init, donate_argnums=0, out_shardings=state_shardings)
