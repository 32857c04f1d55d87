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
from sdjax.models.network import lora
from sdjax.parallel import rules
from sdjax.teacher import kinds


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Rounds done, the float32 parameters that are trained, those that are not (None: all are),
    the teacher's (None: it has none of its own), Adam's moments."""

    step: jax.Array  # int32[]
    params: nnx.State
    frozen: nnx.State | None
    teacher_params: nnx.State | None
    opt_state: optax.OptState

    def model_params(self) -> nnx.State:
        """Returns the parameters of the whole model."""
        return lora.joined(self.params, self.frozen)


def shardings(
    params: nnx.State, tx: optax.GradientTransformation, cfg: Teacher, mesh: Mesh
) -> TrainState:
    """Returns the sharding of every leaf of the state, given abstract params."""
    params, frozen = lora.split(params)
    of_params = rules.param_shardings(params, mesh)
    scalar = rules.replicated(mesh)
    of_opt = optax.tree_utils.tree_map_params(
        tx,
        lambda _, s: s,
        jax.eval_shape(tx.init, params),
        of_params,
        transform_non_params=lambda _: scalar,
    )
    of_teacher = of_params if kinds.has_own_params(cfg, frozen is not None) else None
    if cfg.location == "host":
        of_teacher = _in_memory(of_teacher, "pinned_host")
    return TrainState(
        step=scalar,  # type: ignore[arg-type]
        params=of_params,
        frozen=None if frozen is None else rules.param_shardings(frozen, mesh),
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
        params, frozen = lora.split(params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            teacher_params=kinds.initial_params(params, cfg, frozen is not None),
            opt_state=tx.init(params),
        )

    return jax.jit(init, donate_argnums=0, out_shardings=state_shardings)
