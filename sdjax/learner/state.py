"""The train state: all arrays that a run needs to go on exactly, the teacher's among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import methodcaller

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from sdjax.config import Teacher
from sdjax.models.network import lora
from sdjax.parallel import rules

STORED = ("initial", "ema", "refreshed", "trust_region")
"""The kinds of teachers whose parameters are a copy of the student's of some step."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class OtherModel:
    """A model that only teaches. Its parameters never change, and checkpoints leave them out."""

    graphdef: nnx.GraphDef = field(metadata={"static": True})
    params: nnx.State


Others = dict[str, OtherModel]
"""The models that only teach, by the value of Teacher.route; "" for a single one."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The arrays of a run: steps done, parameters, the teacher's parameters, Adam's moments."""

    step: jax.Array
    """int32[]"""
    params: nnx.State
    """The trained parameters, float32."""
    frozen: nnx.State | None
    """The parameters that are not trained; None where all are."""
    teacher_params: nnx.State | Others | None
    """None where the teacher has the student's parameters, or those without adapters."""
    opt_state: optax.OptState

    def model_params(self, trained: nnx.State | None = None) -> nnx.State:
        """Returns the parameters of the whole model, with `trained` in place of `self.params`."""
        params = self.params if trained is None else trained
        return params if self.frozen is None else lora.joined(params, self.frozen)


def without_others(state: TrainState) -> TrainState:
    """Returns a state, or its shardings, without models that only teach: what a run changes."""
    own = None if isinstance(state.teacher_params, dict) else state.teacher_params
    return replace(state, teacher_params=own)


def shardings(
    params: nnx.State,
    tx: optax.GradientTransformation,
    cfg: Teacher,
    mesh: Mesh,
    others: Others | None = None,
) -> TrainState:
    """Returns the sharding of every leaf of the state, given abstract params.

    Args:
        params: The student's.
        tx: The optimizer.
        cfg: Says whether the teacher's parameters are a copy, and where they are kept.
        mesh: The mesh of devices.
        others: The models that teach, with abstract params, for kind "model".
    """
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
    of_teacher: nnx.State | Others | None
    of_teacher = of_params if _has_own_params(cfg, frozen is not None) else None
    if others:
        of_teacher = {
            name: replace(other, params=rules.param_shardings(other.params, mesh))
            for name, other in others.items()
        }
    if cfg.location == "host":
        of_teacher = jax.tree.map(methodcaller("with_memory_kind", "pinned_host"), of_teacher)
    return TrainState(
        step=scalar,  # type: ignore[arg-type]
        params=of_params,
        frozen=None if frozen is None else rules.param_shardings(frozen, mesh),
        teacher_params=of_teacher,
        opt_state=of_opt,
    )


def initialiser(
    tx: optax.GradientTransformation, cfg: Teacher, state_shardings: TrainState
) -> Callable[[nnx.State], TrainState]:
    """Returns the jitted function from loaded params to the state of step 0.

    It leaves out models that only teach, which the caller loads and adds.
    """

    def init(params: nnx.State) -> TrainState:
        params, frozen = lora.split(params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            teacher_params=_initial_teacher(params, cfg, frozen is not None),
            opt_state=tx.init(params),
        )

    return jax.jit(init, donate_argnums=0, out_shardings=without_others(state_shardings))


def _has_own_params(cfg: Teacher, adapters: bool) -> bool:
    """Returns whether the state holds separate parameters for the teacher.

    With `adapters` only those are trained, so an initial teacher is the model without them.
    """
    return cfg.kind in (("ema", "refreshed") if adapters else STORED)


def _initial_teacher(params: nnx.State, cfg: Teacher, adapters: bool) -> nnx.State | None:
    """Returns the teacher's parameters at the start of a run; None where it has the student's.

    They are a copy, because an update donates the student's buffers. A moving average stays
    float32, because bfloat16 would round its motion away at rate 0.01.
    """
    if not _has_own_params(cfg, adapters):
        return None
    dtype = jnp.float32 if cfg.kind == "ema" or adapters else jnp.dtype(cfg.dtype)
    return jax.tree.map(lambda p: jnp.array(p, dtype, copy=True), params)


def refreshed_teacher(
    teacher: nnx.State, params: nnx.State, step: jax.Array, every: int
) -> nnx.State:
    """Returns the teacher of kind "refreshed" after `step` steps: the student's, if they are due.

    It is the teacher as it was if `every` does not divide `step`, int32[].
    """
    due = step % every == 0
    return jax.tree.map(lambda t, p: jnp.where(due, p.astype(t.dtype), t), teacher, params)


def moved_teacher(teacher: nnx.State, params: nnx.State, rate: float) -> nnx.State:
    """Returns the parameters of the EMA teacher after a step: (1 - rate) teacher + rate student.

    It moves once per step, after all updates (arXiv:2601.20802 section 3.3, and the reference).
    """
    return jax.tree.map(lambda t, p: (1.0 - rate) * t + rate * p, teacher, params)
