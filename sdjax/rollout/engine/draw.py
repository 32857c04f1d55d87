"""Draws one token per row and returns the log-probability that it was drawn with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from sdjax.config import Sampling

BLOCK = 128  # vocabulary entries in a block of the two-level search


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings as arrays, so that other values need no new compilation."""

    temperature: jax.Array  # float32[], 0 is greedy
    top_p: jax.Array  # float32[], 1 is off
    top_k: jax.Array  # int32[], 0 is off


def settings(cfg: Sampling) -> Settings:
    """Returns the arrays for a config section."""
    return Settings(
        temperature=jnp.float32(cfg.temperature),
        top_p=jnp.float32(cfg.top_p),
        top_k=jnp.int32(cfg.top_k),
    )


def draw(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    """Returns int32[B] tokens and float32[B], the log-probability of each when it was drawn.

    `logits` is float32[B, V]; `keys` holds one key per row. The log-probability is that of the
    distribution after temperature, top-k and top-p; a greedy choice has log-probability 0.
    """
    limited = (how.top_p < 1) | (how.top_k > 0)
    way = jnp.where(how.temperature == 0, 0, jnp.where(limited, 2, 1))
    ways = (_greedy, partial(_sampled, limited=False), partial(_sampled, limited=True))
    # Each branch returns two numbers per row, because a branch that returned logits would copy
    # them.
    return jax.lax.switch(way, ways, logits, keys, how)


def _greedy(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    del keys, how
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.zeros(token.shape, jnp.float32)


def _sampled(
    logits: jax.Array, keys: jax.Array, how: Settings, *, limited: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns int32[B], a draw from softmax of each row of [B, V], and its log-probability.

    It inverts the cumulative distribution, first over blocks of the vocabulary and then inside one
    block. This takes two passes over the logits and two uniform numbers per row, in place of one
    random number per entry. Rounding of a long sum loses no small probabilities.
    """
    logits = logits / how.temperature
    if limited:
        logits = _limit(logits, how)
    b, v = logits.shape
    top = jnp.max(logits, axis=-1, keepdims=True)
    room = ((0, 0), (0, -v % BLOCK))
    blocks = jnp.pad(logits, room, constant_values=-jnp.inf).reshape(b, -1, BLOCK)
    mass = jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1)
    u = jax.vmap(partial(jax.random.uniform, shape=(2,)))(keys)
    block = _search(mass, u[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - top
    entry = _search(jnp.exp(inside), u[:, 1])
    own = jnp.take_along_axis(inside, entry[:, None], axis=-1)[:, 0]
    return (block * BLOCK + entry).astype(jnp.int32), own - jnp.log(jnp.sum(mass, axis=-1))


def _search(mass: jax.Array, u: jax.Array) -> jax.Array:
    """Returns int32[B]: the entry of each row of [B, N] at which share u[B] of its mass is reached.

    u is in [0, 1). The entry has mass itself.
    """
    cumulative = jnp.cumsum(mass, axis=-1)
    target = u[:, None] * cumulative[:, -1:]
    # XLA computes a cumulative sum in parts, so rounding may make it rise at entries without mass,
    # and may carry the target past the last entry with mass.
    has_mass = mass > 0
    reached = has_mass & (cumulative > target)
    last = mass.shape[-1] - 1 - jnp.argmax(has_mass[:, ::-1], axis=-1)
    return jnp.where(jnp.any(reached, axis=-1), jnp.argmax(reached, axis=-1), last)


def _limit(logits: jax.Array, how: Settings) -> jax.Array:
    """Returns the logits [B, V]; -inf outside the top-k entries and the top-p set among them."""
    v = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(how.top_k > 0, how.top_k, v)
    ordered = jnp.where(jnp.arange(v) < k, ordered, -jnp.inf)
    probs = jax.nn.softmax(ordered, axis=-1)
    kept = (jnp.cumsum(probs, axis=-1) - probs < how.top_p) & (ordered > -jnp.inf)
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
