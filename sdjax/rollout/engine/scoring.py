"""How likely given texts are: log-probabilities of tokens that the model reads, not draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import UserError
from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import hosts, rules
from sdjax.parallel.mesh import AS_WRITTEN
from sdjax.parallel.rules import bucket
from sdjax.rollout.engine.sampler import LocalSampler

HEAD_TOKENS = 512  # whose logits exist at the same time

OfLogits = Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]
"""Maps logits float32[..., V] and the tokens that follow, int32[...], to arrays [...]. The first of
these is not finite where the logits are not. It closes over no arrays."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How likely a continuation is after its context, at temperature 1."""

    logprobs: np.ndarray
    """float32[T]: the log-probability of each token of the continuation."""
    greedy: bool
    """Whether each token is the likeliest one at its place."""


def likelihoods(
    sampler: LocalSampler,
    weights: DecodeWeights,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[Likelihood]:
    """Returns the likelihood of each pair's continuation after its context, in order.

    See every_token; the softmax is float32.
    """
    scored = every_token(sampler, weights, pairs, _likelihood)
    return [Likelihood(logprobs=own, greedy=bool(top.all())) for own, top in scored]


def _likelihood(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of each token, and whether it is the largest."""
    own = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    likeliest = jnp.argmax(logits, axis=-1) == token
    return own - jax.nn.logsumexp(logits, axis=-1), likeliest


def every_token(
    sampler: LocalSampler,
    weights: DecodeWeights,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    of: OfLogits,
) -> list[tuple[np.ndarray, ...]]:
    """Returns the arrays of `of` at each token of each pair's continuation after its context.

    Pairs are of token ids; neither part is empty. Those of about the same length are computed
    together, in the compute dtype; logits are float32, at temperature 1. Raises UserError where
    logits are not finite.
    """
    longest_first = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    found: dict[int, tuple[np.ndarray, ...]] = {}
    while longest_first:
        width = bucket(sum(map(len, pairs[longest_first[0]])) - 1)
        rows = max(sampler.schedule.prefill_tokens // width, 1)
        rows = -(-rows // sampler.shards) * sampler.shards
        part, longest_first = longest_first[:rows], longest_first[rows:]
        sampler.between()
        scored = _batch(sampler, weights, [pairs[i] for i in part], (rows, width), of)
        found |= zip(part, scored, strict=True)
    return [found[i] for i in range(len(pairs))]


def _batch(
    sampler: LocalSampler,
    weights: DecodeWeights,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    shape: tuple[int, int],
    of: OfLogits,
) -> list[tuple[np.ndarray, ...]]:
    """Returns the arrays of `of` for at most `rows` pairs, of at most `width` + 1 tokens each.

    `shape` is (rows, width).
    """
    rows, width = shape
    columns = bucket(max(len(continuation) for _, continuation in pairs))
    tokens = np.full((rows, width), sampler.pad_id, np.int32)
    index, target = np.zeros((2, rows, columns), np.int32)
    for row, (context, continuation) in enumerate(pairs):
        size, start = len(continuation), len(context) - 1
        tokens[row, : start + size] = [*context, *continuation[:-1]]
        index[row, :size] = np.arange(start, start + size)
        target[row, :size] = continuation
    with jax.set_mesh(sampler.mesh):
        placed = hosts.place((tokens, index, target), rules.leading(sampler.mesh))
        scored = jax.device_get(_score(weights, *placed, cfg=sampler.cfg, of=of))
    out = []
    for row, (context, continuation) in enumerate(pairs):
        own = tuple(x[row, : len(continuation)] for x in scored)
        if not np.isfinite(own[0]).all():
            raise UserError(
                f"the model's logits are not finite after a context of {len(context)} tokens: look "
                "at the weights in model.path, or set model.compute_dtype to float32"
            )
        out.append(own)
    return out


@partial(jax.jit, static_argnames=("cfg", "of"), compiler_options=AS_WRITTEN)
def _score(
    weights: DecodeWeights,
    tokens: jax.Array,
    index: jax.Array,
    target: jax.Array,
    *,
    cfg: ModelConfig,
    of: OfLogits,
) -> tuple[jax.Array, ...]:
    """Returns the arrays of `of` at each target, [P, T] each.

    `tokens` is int32[P, S]; `target` int32[P, T] are the tokens that follow positions `index`.
    """
    hidden = transformer.predicting_states(weights, cfg, tokens, index)
    rows, columns = target.shape
    # A power of two divides the columns, which are a multiple of 32.
    size = max(min(32, 1 << (max(HEAD_TOKENS // rows, 1).bit_length() - 1)), 1)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows, columns // size, size, *x.shape[2:]), 1, 0)

    def one(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        return of(transformer.logits(part[0], weights.head), part[1])

    scored = jax.lax.map(one, (split(hidden), split(target)))
    joined = (jnp.moveaxis(x, 0, 1).reshape(rows, columns) for x in scored)
    return tuple(rules.constrain(x, (None, None)) for x in joined)
