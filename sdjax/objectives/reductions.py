"""Reductions over a vocabulary, each a single pass with a closed-form gradient.

The last axis may be split over devices: everything here is an elementwise function followed by a
reduction, never a gather, so a compiler splits it without moving logits. Logits are finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


def log_normalizer(logits: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """Returns log sum exp over the last axis, over the entries of `keep` if given.

    It is not meant to be differentiated: the functions that use it bring their own gradients.
    """
    if keep is not None:
        logits = jnp.where(keep, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1)
    return top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))


def is_token(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Returns bool[..., V]: True at the entry of each position's token."""
    entry = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return entry == token[..., None]


@jax.custom_vjp
def log_prob(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Returns the log-probability of `token` int32[...] under softmax(logits [..., V])."""
    return _log_prob_forward(logits, token)[0]


def _log_prob_forward(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, Any]:
    norm = log_normalizer(logits)
    own = jnp.sum(jnp.where(is_token(logits, token), logits, 0.0), axis=-1)
    return own - norm, (logits, token, norm)


def _log_prob_backward(saved: Any, g: jax.Array) -> tuple[jax.Array, None]:
    logits, token, norm = saved
    p = jnp.exp(logits - norm[..., None])
    return g[..., None] * (is_token(logits, token).astype(p.dtype) - p), None


log_prob.defvjp(_log_prob_forward, _log_prob_backward)


def entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropy in nats of softmax(logits) over the last axis."""
    a = logits - log_normalizer(logits)[..., None]
    return -jnp.sum(jnp.exp(a) * a, axis=-1)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two distributions over the last axis, float32[...] each, in nats."""

    p_entropy: jax.Array
    q_entropy: jax.Array
    kl: jax.Array  # KL(p || q)
    q_log_prob: jax.Array  # of the token


def compare(p_logits: jax.Array, q_logits: jax.Array, token: jax.Array) -> Comparison:
    """Returns what is reported of softmax(p_logits) and softmax(q_logits) at int32[...] tokens."""
    a = p_logits - log_normalizer(p_logits)[..., None]
    b = q_logits - log_normalizer(q_logits)[..., None]
    p, q = jnp.exp(a), jnp.exp(b)
    p_log_p, q_log_q, kl, own = sums(
        p * a, q * b, p * (a - b), jnp.where(is_token(b, token), b, 0.0)
    )
    return Comparison(p_entropy=-p_log_p, q_entropy=-q_log_q, kl=kl, q_log_prob=own)


def sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the sum of each over the last axis.

    A GPU makes them in one pass over what the terms share, where XLA would write a term that two
    of them use to memory and read it back; its CPU code for such a reduction is slower than one
    pass each.
    """
    if jax.default_backend() != "gpu":
        return tuple(jnp.sum(x, axis=-1) for x in terms)
    zeros = (jnp.float32(0),) * len(terms)
    return jax.lax.reduce(
        terms, zeros, lambda x, y: tuple(map(jnp.add, x, y)), (terms[0].ndim - 1,)
    )


def same_top(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns bool[...]: whether some entry is a likeliest one of both."""
    both = (x == jnp.max(x, axis=-1, keepdims=True)) & (y == jnp.max(y, axis=-1, keepdims=True))
    return jnp.any(both, axis=-1)


def is_top(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Returns bool[...]: whether int32[...] `token` is a likeliest one."""
    own = jnp.max(logits, axis=-1, where=is_token(logits, token), initial=-jnp.inf)
    return own == jnp.max(logits, axis=-1)
