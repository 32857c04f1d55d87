"""Drawing one token a row, and the log-probability it was drawn with."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sdjax.config import Sampling

BLOCK = 128  # vocabulary entries in a block of the two-level search


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings as arrays: changing them compiles nothing."""

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
    """Returns int32[B] tokens and float32[B] their log-probabilities when drawn.

    `logits` is float32[B, V], `keys` one key a row. The log-probability is that of the
    distribution after temperature, top-k and top-p; a greedy choice has log-probability 0.
    """
    limited = (how.top_p < 1) | (how.top_k > 0)
    way = jnp.where(how.temperature == 0, 0, jnp.where(limited, 2, 1))
    # Whole ways, each ending in two numbers a row: a branch that gave logits would copy them.
    return jax.lax.switch(way, (_greedy, _plain, _limited), logits, keys, how)


def _greedy(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    del keys, how
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.zeros(token.shape, jnp.float32)


def _plain(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    return _inverse_cdf(logits / how.temperature, keys)


def _limited(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    return _inverse_cdf(_limit(logits / how.temperature, how), keys)


def _inverse_cdf(logits: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns int32[B], a draw from softmax of each row of [B, V], and its log-probability.

    First a block of the vocabulary, then an entry of it: two passes over the logits and two
    uniforms a row in place of a random number for every entry, and no loss of small probabilities
    to a long sum's rounding.
    """
    b, v = logits.shape
    top = jnp.max(logits, axis=-1, keepdims=True)
    room = ((0, 0), (0, -v % BLOCK))
    blocks = jnp.pad(logits, room, constant_values=-jnp.inf).reshape(b, -1, BLOCK)
    mass = jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1)
    u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    block = _search(mass, u[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - top
    entry = _search(jnp.exp(inside), u[:, 1])
    own = jnp.take_along_axis(inside, entry[:, None], axis=-1)[:, 0]
    return (block * BLOCK + entry).astype(jnp.int32), own - jnp.log(jnp.sum(mass, axis=-1))


def _search(mass: jax.Array, u: jax.Array) -> jax.Array:
    """Returns for each row of [B, N] the entry that the share u in [0, 1) of its mass falls in."""
    cumulative = jnp.cumsum(mass, axis=-1)
    target = u[:, None] * cumulative[:, -1:]
    # A cumulative sum by parts is flat over entries without mass only up to rounding, which may
    # also carry the target past the last entry that has some.
    some = mass > 0
    found = some & (cumulative > target)
    last = mass.shape[-1] - 1 - jnp.argmax(some[:, ::-1], axis=-1)
    return jnp.where(jnp.any(found, axis=-1), jnp.argmax(found, axis=-1), last)


def _limit(logits: jax.Array, how: Settings) -> jax.Array:
    """Returns the logits with all but the top-k, and of those the top-p set, at -inf."""
    v = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(how.top_k > 0, how.top_k, v)
    ordered = jnp.where(jnp.arange(v) < k, ordered, -jnp.inf)
    probs = jax.nn.softmax(ordered, axis=-1)
    kept = (jnp.cumsum(probs, axis=-1) - probs < how.top_p) & (ordered > -jnp.inf)
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
