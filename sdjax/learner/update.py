"""One update: microbatches of student and teacher rows in, new state out, compiled once a shape.

Each microbatch's losses are already divided by the whole update's counts, so sums over
microbatches, chunks, rows and devices are exact: none of these, nor which completions share a row,
changes the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax import config
from sdjax.learner import adamw
from sdjax.learner.accumulate import GradientSums, add_gradient, over_microbatches
from sdjax.learner.batch import Batch, Rows
from sdjax.learner.logprobs import token_outputs
from sdjax.learner.objective import TokenRecord, gathered, microbatch_loss
from sdjax.learner.state import TrainState, teacher_on_device
from sdjax.learner.update_metrics import Sums, of_update
from sdjax.models.network.transformer import head_matrix
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN
from sdjax.teacher import kinds

Metrics = dict[str, jax.Array]
AnyBatch = TypeVar("AnyBatch")


def make_train_step(
    graphdef: nnx.GraphDef, cfg: config.Train, mesh: Mesh, state_shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics, TokenRecord]]:
    """Returns the jitted update. It donates the state, and leaves it as it is where the loss or the
    gradient is not finite.

    An update without a completion to learn from is one with gradient 0, as in the reference:
    Adam's momentum and the weight decay still move the parameters.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics, TokenRecord]:
        near = replace(state, teacher_params=teacher_on_device(state, state_shardings))

        def one(micro: Rows, grads: nnx.State) -> tuple[nnx.State, tuple[Sums, TokenRecord]]:
            def loss(params: nnx.State, sums: GradientSums) -> tuple[jax.Array, Any]:
                return microbatch_loss(
                    params, near.teacher_params, micro, batch.samples, graphdef, cfg, sums
                )

            into = cfg.model.remat == "full"
            return add_gradient(grads, state.params, loss, graphdef, into=into, frozen=state.frozen)

        grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
        grads = jax.lax.with_sharding_constraint(grads, state_shardings.params)
        grads, (sums, record) = over_microbatches(one, grads, batch.rows, batch.microbatches)
        lr = adamw.learning_rate(state.step, cfg.optim)
        metrics = of_update(sums)
        loss = metrics["loss/total"]
        params, opt_state, norm = adamw.apply(
            state.params, state.opt_state, grads, lr, cfg.optim, loss
        )
        state = replace(state, params=params, opt_state=opt_state)
        metrics |= {
            "optim/grad_norm": norm,
            "optim/skipped": 1.0 - (jnp.isfinite(norm) & jnp.isfinite(loss)).astype(jnp.float32),
            "optim/lr": lr,
            "update/padding": batch.padding,
        }
        return state, metrics, record

    rep = rules.replicated(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, None),
        out_shardings=(state_shardings, rep, rep),
        compiler_options=AS_WRITTEN,
    )


def make_score(
    graphdef: nnx.GraphDef, cfg: config.Train, mesh: Mesh
) -> Callable[[nnx.State, Batch], jax.Array]:
    """Returns the jitted function to the log-probabilities of a batch's tokens, [M, R, C].

    They are the `old_logprobs` of a step that makes several updates.
    """

    def score(params: nnx.State, batch: Batch) -> jax.Array:
        def one(micro: Rows, total: None) -> tuple[None, jax.Array]:
            model = nnx.merge(graphdef, params)
            hidden = gathered(model, micro.student, micro.student_index)
            outputs = token_outputs(
                hidden,
                head_matrix(model),
                None,
                None,
                micro.token,
                cfg=cfg.loss,
                vocab_first=model.cfg.tie_embeddings,
                temperature=cfg.rollout.temperature,
                mask=micro.sample >= 0,
            )
            return total, outputs.student_logprob

        return over_microbatches(one, None, batch.rows, batch.microbatches)[1]

    return jax.jit(score, out_shardings=rules.leading(mesh, 1), compiler_options=AS_WRITTEN)


def make_after_step(
    cfg: config.Teacher, state_shardings: TrainState
) -> Callable[[TrainState], TrainState]:
    """Returns the jitted end of a round: counts it and moves the EMA teacher."""

    def after_step(state: TrainState) -> TrainState:
        teacher = kinds.moved(state.teacher_params, state.params, cfg)
        return replace(state, step=state.step + 1, teacher_params=teacher)

    return jax.jit(after_step, donate_argnums=0, out_shardings=state_shardings)


def batch_shardings(batch: AnyBatch, mesh: Mesh) -> AnyBatch:
    """Returns the sharding of every array of a batch: rows are split, what is [B] is not."""
    return jax.tree.map(
        lambda x: rules.leading(mesh, 1) if np.ndim(x) == 3 else rules.replicated(mesh), batch
    )
