"""What student and teacher would have said instead: the likeliest tokens at a few completions.

A forward pass of its own over these completions' rows, before the step's first update, so with the
parameters whose log-probabilities of that update's tokens are reported.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax import config
from sdjax.learner.accumulate import GradientSums
from sdjax.learner.batch import Batch, Rows, places, rows_with
from sdjax.learner.logprobs import logits, mixed
from sdjax.learner.objective import contexts_of
from sdjax.learner.state import TrainState, teacher_on_device
from sdjax.objectives.reductions import log_normalizer
from sdjax.parallel import hosts, rules
from sdjax.parallel.mesh import AS_WRITTEN, batch_shards

CHUNK = 256
"""Positions whose logits exist at one time, over all devices."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Likeliest:
    """The k likeliest tokens and their log-probabilities, likeliest first, [M, R, C, k]."""

    token: jax.Array  # int32
    logprob: jax.Array  # float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """Those of the student and of the teacher; None where no teacher runs."""

    student: Likeliest
    teacher: Likeliest | None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The alternatives of a few completions, perhaps still being computed."""

    found: Alternatives
    """[M, R, C, k]"""
    places: dict[int, slice]
    """Of a completion's tokens in M R C."""

    def by_completion(self) -> dict[int, Alternatives]:
        """Waits for them and returns those of each completion on the host, [T_i, k]."""
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), jax.device_get(self.found))
        return {i: jax.tree.map(operator.itemgetter(at), flat) for i, at in self.places.items()}


def scored(
    score: Callable[[TrainState, Rows], Alternatives],
    state: TrainState,
    batch: Batch,
    completions: Sequence[int],
    mesh: Mesh,
    most: int,
) -> Scored:
    """Starts scoring `completions`, `most` at most, that have a row in this host batch."""
    flat = places(batch)[list(completions)]
    rows = rows_with(batch, flat.tolist(), batch_shards(mesh), most)
    width = batch.rows.token.shape[-1]
    starts = np.arange(len(flat)) * width + flat % width
    ends = starts + batch.samples.length[list(completions)]
    return Scored(
        found=score(state, hosts.place(rows, rules.leading(mesh, 1))),
        places=dict(zip(completions, map(slice, starts.tolist(), ends.tolist()), strict=True)),
    )


def make_alternatives(
    graphdef: nnx.GraphDef, cfg: config.Train, mesh: Mesh, state_shardings: TrainState
) -> Callable[[TrainState, Rows], Alternatives]:
    """Returns the jitted function from a state and blocks of rows to their alternatives.

    Blocks are [M, R, ...] as a batch's microbatches are, and run one after the other. The teacher
    is the one that the train step has, in its context and with its weights.
    """

    def score(state: TrainState, rows: Rows) -> Alternatives:
        teacher = teacher_on_device(state, state_shardings)

        def block(of: Rows) -> Alternatives:
            contexts = contexts_of(state.model_params(), teacher, of, graphdef, cfg, GradientSums())
            return _of_contexts(contexts, k=min(cfg.log.alternatives, _vocabulary(contexts)))

        return jax.lax.map(block, rows)

    return jax.jit(score, out_shardings=rules.replicated(mesh), compiler_options=AS_WRITTEN)


def _vocabulary(contexts: dict[str, Any]) -> int:
    return contexts["student_head"].shape[0 if contexts["vocab_first"] else 1]


def _of_contexts(contexts: dict[str, Any], k: int) -> Alternatives:
    """Returns the alternatives at hidden states [R, C, D], by the names of token_outputs."""
    student = contexts["student_hidden"]
    of_logits = partial(
        logits, vocab_first=contexts["vocab_first"], temperature=contexts["temperature"]
    )
    names = ("student", "teacher", "live")
    hidden = {n: x for n in names if (x := contexts.get(f"{n}_hidden")) is not None}
    heads = {n: contexts[f"{n}_head"].astype(student.dtype) for n in hidden}

    def at(chunk: dict[str, jax.Array]) -> Alternatives:
        out = {n: of_logits(chunk[n], heads[n]) for n in hidden}
        if "live" in out:
            out["teacher"] = mixed(out["teacher"], out["live"], contexts["mix"])
        teacher = _likeliest(out["teacher"], k) if "teacher" in out else None
        return Alternatives(student=_likeliest(out["student"], k), teacher=teacher)

    size = min(CHUNK, student.shape[0] * student.shape[1])

    def split(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, x.shape[-1])
        return jnp.pad(flat, ((0, -len(flat) % size), (0, 0))).reshape(-1, size, x.shape[-1])

    def join(x: jax.Array) -> jax.Array:
        rows, tokens = student.shape[:2]
        return x.reshape(-1, k)[: rows * tokens].reshape(rows, tokens, k)

    return jax.tree.map(join, jax.lax.map(at, jax.tree.map(split, hidden)))


def _likeliest(x: jax.Array, k: int) -> Likeliest:
    top, token = jax.lax.top_k(x, k)
    return Likeliest(token=token, logprob=top - log_normalizer(x)[..., None])
