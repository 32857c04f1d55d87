"""Measures how far the student is from a teacher that reads more, at every token of completions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sdjax.learner.batch import Batch
from sdjax.learner.chunked_head import Tokens, token_outputs
from sdjax.learner.objective import Objective, contexts_of
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN


def make_context_gap(
    graphdef: nnx.GraphDef, objective: Objective, mesh: Mesh
) -> Callable[[nnx.State, Batch], jax.Array]:
    """Returns the jitted function from params and batch to KL(student || teacher) in nats.

    It is float32[M, R, C], 0 where there is no token. Student and teacher have the same params, as
    before a training, and the objective's target says which context the teacher reads.
    """

    def gap(params: nnx.State, batch: Batch) -> jax.Array:
        def microbatch(i: jax.Array, gaps: jax.Array) -> jax.Array:
            at = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            rows = jax.tree.map(at, batch.rows)
            contexts, spec = contexts_of(graphdef, objective, params, None, rows)
            tokens = Tokens(token=rows.token, mask=rows.sample >= 0)
            return gaps.at[i].set(token_outputs(contexts, tokens, spec).reverse_kl)

        zeros = jnp.zeros(batch.rows.token.shape, jnp.float32)
        return jax.lax.fori_loop(0, batch.microbatches, microbatch, zeros)

    return jax.jit(gap, out_shardings=rules.replicated(mesh), compiler_options=AS_WRITTEN)
