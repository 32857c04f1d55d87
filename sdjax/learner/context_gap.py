"""Measures how far the student is from a teacher that reads more, at every token of completions."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh

from sdjax.learner.batch import Rows
from sdjax.learner.chunked_head import Tokens, token_outputs
from sdjax.learner.objective import Objective, contexts_of
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN


def make_context_gap(
    graphdef: nnx.GraphDef, objective: Objective, mesh: Mesh
) -> Callable[[nnx.State, Rows], jax.Array]:
    """Returns the jitted function from params and a microbatch's rows to KL(student || teacher).

    The rows are [R, ...]. The result is float32[R, C] in nats, 0 where there is no token. Student
    and teacher have the same params, as before a training, and the objective's target says which
    context the teacher reads.
    """

    def gap(params: nnx.State, rows: Rows) -> jax.Array:
        contexts, spec = contexts_of(graphdef, objective, params, None, rows)
        tokens = Tokens(token=rows.token, mask=rows.sample >= 0)
        return token_outputs(contexts, tokens, spec).reverse_kl

    return jax.jit(gap, out_shardings=rules.replicated(mesh), compiler_options=AS_WRITTEN)
