"""Compiles an update: microbatches of rows in, new train state out, once per shape.

Reinforcement learning and supervised finetuning share `make_update`; each brings the loss of a
microbatch. A batch has `rows`, a pytree of arrays [M, R, ...]; `microbatches`, the number of those
that are not empty, which come first and alone run; and `padding`.

An update without a completion to learn from has gradient 0, as in the reference: the momentum of
Adam and the weight decay still move the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax import config
from sdjax.learner import adamw
from sdjax.learner.batch import Batch
from sdjax.learner.chunked_head import Tokens, token_outputs
from sdjax.learner.objective import (
    NO_SUMS,
    GradientSums,
    Objective,
    TokenRecord,
    contexts_of,
    microbatch_loss,
    update_metrics,
)
from sdjax.learner.state import Others, TrainState, moved_teacher, refreshed_teacher
from sdjax.models.network import lora
from sdjax.models.network.transformer import head_matrix, trained_layers
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN

Metrics = dict[str, jax.Array]
AnyBatch = TypeVar("AnyBatch")
MicrobatchLoss = Callable[[nnx.State, GradientSums, TrainState, Any], tuple[jax.Array, Any]]
"""Maps (trained parameters, gradient sums, state, batch of one microbatch) to the loss, and a pair:
sums for the metrics, and the tokens' record. The loss must be differentiated as it is,
because the head's gradient is in the sums before a factor could reach it."""
MetricsOf = Callable[[Any, Any], tuple[jax.Array, jax.Array | None, Metrics]]
"""Maps (sums of all microbatches, [M, ...]; batch) to the loss of the update, what its gradient is
divided by (None: nothing) and its metrics."""


def make_update(
    graphdef: nnx.GraphDef,
    loss: MicrobatchLoss,
    metrics_of: MetricsOf,
    optim: config.Optim,
    state_shardings: TrainState,
    remat: str,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics, Any]]:
    """Returns the jitted function from state and batch to state, metrics and the tokens' record.

    It donates the state, and leaves it as it is where the loss or the gradient is not finite.

    Args:
        graphdef: The model's structure.
        loss: The loss of a microbatch, already divided by counts of the whole update.
        metrics_of: Makes the metrics of the update from what `loss` reports.
        optim: The config of the optimizer.
        state_shardings: The sharding of every leaf of the state.
        remat: As in config.Model. "full" adds the gradients of layers and head in place.
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics, Any]:
        on_device = replace(state, teacher_params=teacher_on_device(state, state_shardings))

        def add_gradient(i: jax.Array, grads: nnx.State) -> tuple[nnx.State, Any]:
            at = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            micro = replace(batch, rows=jax.tree.map(at, batch.rows))
            if remat == "full":
                return _add_in_place(grads, loss, graphdef, on_device, micro)
            added, reported = jax.grad(loss, has_aux=True)(state.params, NO_SUMS, on_device, micro)
            return jax.tree.map(jnp.add, grads, added), reported

        def microbatch(i: jax.Array, carry: tuple[nnx.State, list]) -> tuple[nnx.State, list]:
            grads, reported = traced_once(i, carry[0])
            new = jax.tree.leaves(reported)
            return grads, [x.at[i].set(y) for x, y in zip(carry[1], new, strict=True)]

        zeros = jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), state.params)
        zeros = jax.lax.with_sharding_constraint(zeros, state_shardings.params)
        # The loop needs the shapes of all reports. A jitted function is traced once for both.
        traced_once = jax.jit(add_gradient, inline=True)
        index = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)  # as fori_loop counts
        shapes, tree = jax.tree.flatten(jax.eval_shape(traced_once, index, zeros)[1])
        m = jax.tree.leaves(batch.rows)[0].shape[0]
        reports = [jnp.zeros((m, *x.shape), x.dtype) for x in shapes]
        grads, reports = jax.lax.fori_loop(0, batch.microbatches, microbatch, (zeros, reports))
        sums, record = jax.tree.unflatten(tree, reports)
        total, divisor, metrics = metrics_of(sums, batch)
        state, of_optim = adamw.apply(state, grads, optim, total, divisor)
        return state, metrics | of_optim | {"update/padding": batch.padding}, record

    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(state_shardings, None),
        out_shardings=(state_shardings, state_shardings.step, state_shardings.step),
        compiler_options=AS_WRITTEN,
    )


def _add_in_place(
    grads: nnx.State, loss: MicrobatchLoss, graphdef: nnx.GraphDef, state: TrainState, micro: Any
) -> tuple[nnx.State, Any]:
    """Returns `grads` plus those of a microbatch, and what its loss reports.

    hidden_states, which recomputes whole layers, adds the gradients of the layers in place, and
    the chunked head those of the head. So no second set of these gradients exists. One exception
    is the head's where rows are split over devices, because each device then has its own.
    """
    own = dict(state.params.items())
    head = "head" if "head" in own else "embedding"
    summed = {"layers", head} if state.frozen is None else {lora.NAME}
    # An embedding that is the head too has a second gradient outside its sums: that of the lookup.
    others = {name: part for name, part in own.items() if name not in summed - {"embedding"}}

    def of_parts(others: dict, sums: dict) -> tuple[jax.Array, Any]:
        with_sums = nnx.merge(graphdef, state.model_params(nnx.State(own | sums)))
        so_far = GradientSums(
            layers=trained_layers(with_sums)[0],
            head=head_matrix(with_sums) if state.frozen is None else None,
        )
        return loss(nnx.State(own | others), so_far, state, micro)

    sums = {name: grads[name] for name in summed}
    (added, new), reported = jax.grad(of_parts, (0, 1), has_aux=True)(others, sums)
    total = {n: jax.tree.map(jnp.add, new.get(n, grads[n]), part) for n, part in added.items()}
    # The parts of a State come out of it as States, but inside they are plain dicts.
    leaves = jax.tree.leaves(nnx.State(new | total))
    return jax.tree.unflatten(jax.tree.structure(grads), leaves), reported


def make_train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optim: config.Optim,
    state_shardings: TrainState,
    remat: str,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics, TokenRecord]]:
    """Returns the jitted update of reinforcement learning.

    Args:
        graphdef: The model's structure.
        objective: What the update minimises.
        optim: As in make_update, like the following arguments.
        state_shardings: The sharding of every leaf of the state.
        remat: As in config.Model.
    """
    loss = partial(microbatch_loss, graphdef, objective)
    return make_update(graphdef, loss, update_metrics, optim, state_shardings, remat)


def make_score(
    graphdef: nnx.GraphDef, objective: Objective, mesh: Mesh
) -> Callable[[nnx.State, Batch], jax.Array]:
    """Returns the jitted function from params and batch to its log-probabilities, [M, R, C].

    They are the `old_logprobs` of a step that makes several updates.
    """

    def score(params: nnx.State, batch: Batch) -> jax.Array:
        student_only = replace(batch.rows, contexts={})

        def microbatch(i: jax.Array, scores: jax.Array) -> jax.Array:
            at = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            rows = jax.tree.map(at, student_only)
            contexts, spec = contexts_of(graphdef, objective, params, None, rows)
            tokens = Tokens(token=rows.token, mask=rows.sample >= 0)
            return scores.at[i].set(token_outputs(contexts, tokens, spec).student_logprob)

        zeros = jnp.zeros(batch.rows.token.shape, jnp.float32)
        return jax.lax.fori_loop(0, batch.microbatches, microbatch, zeros)

    return jax.jit(score, out_shardings=rules.leading(mesh, 1), compiler_options=AS_WRITTEN)


def make_after_step(
    cfg: config.Teacher, state_shardings: TrainState
) -> Callable[[TrainState], TrainState]:
    """Returns the jitted end of a step: it counts the step and moves a teacher that moves."""

    def after_step(state: TrainState) -> TrainState:
        teacher = state.teacher_params
        if isinstance(teacher, nnx.State) and cfg.kind == "ema":
            teacher = moved_teacher(teacher, state.params, cfg.ema_rate)
        elif isinstance(teacher, nnx.State) and cfg.kind == "refreshed":
            teacher = refreshed_teacher(teacher, state.params, state.step + 1, cfg.every)
        return replace(state, step=state.step + 1, teacher_params=teacher)

    return jax.jit(after_step, donate_argnums=0, out_shardings=state_shardings)


def teacher_on_device(state: TrainState, state_shardings: TrainState) -> nnx.State | Others | None:
    """Returns the teacher's parameters in device memory, inside a jitted function.

    None where the teacher has the student's.
    """
    on_device = methodcaller("with_memory_kind", "device")
    return jax.device_put(
        state.teacher_params, jax.tree.map(on_device, state_shardings.teacher_params)
    )


def batch_shardings(batch: AnyBatch, mesh: Mesh) -> AnyBatch:
    """Returns the sharding of every array of a batch: rows are split, arrays [B] are not."""
    leaves, tree = jax.tree.flatten(batch)
    rows, whole = rules.leading(mesh, 1), rules.replicated(mesh)
    return jax.tree.unflatten(tree, [rows if np.ndim(x) == 3 else whole for x in leaves])
