"""Scores alternatives: the likeliest tokens of student and teacher at some completions.

A separate forward pass over the rows of these completions computes them, before the first update
of the step. So they come from the same parameters as the log-probabilities which that update
reports.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax.learner.batch import Batch, Rows, places, rows_with
from sdjax.learner.chunked_head import Contexts, HeadSpec, Tokens, logits
from sdjax.learner.objective import Objective, contexts_of
from sdjax.learner.state import TrainState
from sdjax.learner.update import teacher_on_device
from sdjax.models.network import lora
from sdjax.objectives.divergences import log_normalizer
from sdjax.parallel import hosts, rules
from sdjax.parallel.mesh import AS_WRITTEN, batch_shards

CHUNK = 256
"""How many positions have logits at one time, over all devices."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Likeliest:
    """The k likeliest tokens and their log-probabilities, likeliest first, [M, R, C, k]."""

    token: jax.Array  # int32
    logprob: jax.Array  # float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """The likeliest tokens of the student and of the teacher; None where no teacher runs."""

    student: Likeliest
    teacher: Likeliest | None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The alternatives of some completions; the devices may still compute them."""

    arrays: Alternatives
    """[M, R, C, k]"""
    places: dict[int, slice]
    """By completion: where its tokens stand in M R C."""

    def by_completion(self) -> dict[int, Alternatives]:
        """Waits for the devices; returns the alternatives of each completion, [T_i, k]."""
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), jax.device_get(self.arrays))
        return {i: jax.tree.map(operator.itemgetter(at), flat) for i, at in self.places.items()}


def scored(
    score: Callable[[TrainState, Rows], Alternatives],
    state: TrainState,
    batch: Batch,
    completions: Sequence[int],
    mesh: Mesh,
    most: int,
) -> Scored:
    """Starts to score `completions` of a host batch, and returns without waiting.

    Args:
        score: What make_alternatives returns.
        state: The train state.
        batch: The batch on the host.
        completions: Indices of completions that have a row in the batch.
        mesh: The mesh of the state.
        most: The largest number of completions of any call; it fixes the compiled shape.
    """
    flat = places(batch)[list(completions)]
    rows = rows_with(batch, flat.tolist(), batch_shards(mesh), most)
    width = batch.rows.token.shape[-1]
    starts = np.arange(len(flat)) * width + flat % width
    ends = starts + batch.samples.length[list(completions)]
    return Scored(
        arrays=score(state, hosts.place(rows, rules.leading(mesh, 1))),
        places=dict(zip(completions, map(slice, starts.tolist(), ends.tolist()), strict=True)),
    )


def make_alternatives(
    graphdef: nnx.GraphDef,
    objective: Objective,
    k: int,
    mesh: Mesh,
    state_shardings: TrainState,
) -> Callable[[TrainState, Rows], Alternatives]:
    """Returns the jitted function from a state and blocks of rows to their `k` alternatives.

    Blocks are [M, R, ...] as the microbatches of a batch are, and run one after the other. The
    teacher is that of the train step, in its context and with its weights.

    Args:
        graphdef: The model's structure.
        objective: Says which teacher runs, and at which temperature.
        k: How many of the likeliest tokens are kept, at most the vocabulary.
        mesh: The mesh of the state.
        state_shardings: The sharding of every leaf of the state.
    """

    def score(state: TrainState, rows: Rows) -> Alternatives:
        teacher, params = (
            teacher_on_device(state, state_shardings),
            lora.joined(state.params, state.frozen),
        )

        def block(of: Rows) -> Alternatives:
            contexts, spec = contexts_of(graphdef, objective, params, teacher, of)
            tokens = Tokens(token=of.token, mask=of.sample >= 0, route=of.route)
            return _of_contexts(contexts, tokens, spec, k)

        return jax.lax.map(block, rows)

    return jax.jit(score, out_shardings=rules.replicated(mesh), compiler_options=AS_WRITTEN)


def _of_contexts(contexts: Contexts, tokens: Tokens, spec: HeadSpec, k: int) -> Alternatives:
    """Returns the alternatives of a block of rows, [R, C, k]."""
    hidden, heads = contexts.arrays(tokens.mask)
    rows, width = tokens.token.shape
    k = min(k, contexts.student.head.shape[0 if spec.vocab_first else 1])
    size = min(CHUNK, rows * width)
    route = None if tokens.route is None else tokens.route[..., None]

    def at(chunk: tuple[dict[str, jax.Array], jax.Array | None]) -> Alternatives:
        of, of_route = chunk
        routed = None if of_route is None else of_route[:, 0]
        student, teacher, _ = logits(of, heads, spec, routed)
        return Alternatives(
            student=_likeliest(student, k),
            teacher=None if teacher is None else _likeliest(teacher, k),
        )

    def split(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, x.shape[-1])
        return jnp.pad(flat, ((0, -len(flat) % size), (0, 0))).reshape(-1, size, x.shape[-1])

    def join(x: jax.Array) -> jax.Array:
        return x.reshape(-1, k)[: rows * width].reshape(rows, width, k)

    return jax.tree.map(join, jax.lax.map(at, jax.tree.map(split, (hidden, route))))


def _likeliest(x: jax.Array, k: int) -> Likeliest:
    """Returns the k largest of logits [..., V]."""
    top, token = jax.lax.top_k(x, k)
    return Likeliest(token=token, logprob=top - log_normalizer(x)[..., None])
