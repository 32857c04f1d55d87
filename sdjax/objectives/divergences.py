"""Measures how far the student's next-token distribution is from the teacher's, at every token.

Conventions (arXiv:2601.20802, arXiv:2603.24472): S student, T teacher, M = (1 - alpha) S + alpha T.

    alpha 0        KL(T || S), forward
    alpha 1        KL(S || T), reverse
    0 < alpha < 1  (1 - alpha) KL(S || M) + alpha KL(T || M), generalised Jensen-Shannon

The last line tends to 0, not to the KLs, as alpha nears 0 or 1. So with scale "reference" a sweep
of alpha is a sweep of the learning rate by factors of 10 to 1000, with a jump at both ends. Scale
"continuous" divides it by alpha (1 - alpha); its limits are then the two KLs (JSD x 4).

A divergence is a function `f(student, teacher, token, cfg)`. It takes logits float32[..., V] after
temperature, the sampled tokens int32[...] and the `Loss` section, and returns float32[...]. The
caller stops the gradient to the teacher. To add a divergence, write the function here and name it
in DIVERGENCES.

The last axis may be split over devices. Everything here is an elementwise function followed by a
reduction, never a gather, so the compiler splits it without moving logits. Logits are finite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import Loss
from sdjax.errors import UserError
from sdjax.objectives import forks
from sdjax.objectives.selection import Selection, selected
from sdjax.objectives.selection import top_k as select_top_k

Divergence = Callable[[jax.Array, jax.Array, jax.Array, Loss], jax.Array]

TAIL_FLOOR = -math.expm1(-1e-7)
"""Least probability of the tail bin: the reference keeps the log-sum of the top k below -1e-7."""


def full(student: jax.Array, teacher: jax.Array, token: jax.Array, cfg: Loss) -> jax.Array:
    """Returns the divergence over the whole vocabulary (arXiv:2601.20802 section 3.1)."""
    del token
    each = _over_bins(student, teacher, None, cfg)
    return each if cfg.token_clip is None else jnp.minimum(each, cfg.token_clip)


def top_k(student: jax.Array, teacher: jax.Array, token: jax.Array, cfg: Loss) -> jax.Array:
    """Returns the divergence over the cfg.top_k likeliest tokens of student or teacher.

    With cfg.tail the other tokens form one more bin; without, both sides are renormalised over
    the kept ones. Which tokens are kept carries no gradient.
    """
    del token
    by = jax.lax.stop_gradient(student) if cfg.top_k_by == "student" else teacher
    kept = select_top_k(by, min(cfg.top_k, by.shape[-1]))
    each = _over_bins(student, teacher, kept, cfg)
    return each if cfg.token_clip is None else jnp.minimum(each, cfg.token_clip)


def sampled(student: jax.Array, teacher: jax.Array, token: jax.Array, cfg: Loss) -> jax.Array:
    """Returns a loss at the sampled token only: c log S(y), where c carries no gradient.

    For y drawn from the student, the expectation of its gradient is that of `full` with the same
    alpha and scale. Since grad GJSD = (1 - alpha) E_S[log(S / M) grad log S], c is

        alpha 0        c = 1 - T/S   (E[grad log S] = 0 lets the 1 in: less variance)
        0 < alpha < 1  c = (1 - alpha) log(S/M); scale "continuous": log(S/M) / alpha
        alpha 1        c = log(S/T), the estimator of the reference

    Its value is no divergence and can be negative. cfg.token_clip bounds c from above.
    """
    logprob = log_prob(student, token)
    gap = log_prob(teacher, token) - jax.lax.stop_gradient(logprob)
    if cfg.alpha == 0.0:
        c = -jnp.expm1(gap)
    elif cfg.alpha == 1.0:
        c = -gap
    else:
        scale = 1.0 / (cfg.alpha * (1.0 - cfg.alpha)) if cfg.scale == "continuous" else 1.0
        odds = gap + (math.log(cfg.alpha) - math.log1p(-cfg.alpha))  # as in _shares
        rest = jnp.log1p(jnp.exp(-jnp.abs(odds)))
        log_s = -(math.log1p(-cfg.alpha) + jnp.maximum(odds, 0.0) + rest)
        c = scale * (1.0 - cfg.alpha) * log_s
    c = c if cfg.token_clip is None else jnp.minimum(c, cfg.token_clip)
    return c * logprob


DIVERGENCES: dict[str, Divergence] = {"full": full, "top_k": top_k, "sampled": sampled}


def get(name: str) -> Divergence:
    """Returns the divergence of that name; raises UserError where there is none."""
    if name not in DIVERGENCES:
        raise UserError(f"loss.divergence is {name!r}: one of {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def _shares(a: jax.Array, b: jax.Array, cfg: Loss) -> tuple[jax.Array, jax.Array]:
    """Returns each bin's share of the divergence, and its derivative by a: a = log S, b = log T.

    Adding s - t to each bin leaves a KL unchanged, because both sum to 1. It makes every share
    non-negative, so a pointwise clip cannot make the divergence negative. Scale "reference" leaves
    it out, as the papers ran.
    """
    s, t = jnp.exp(a), jnp.exp(b)
    own = (s - t) if cfg.scale == "continuous" else 0.0
    if cfg.alpha == 0.0:
        share, slope = t * (b - a) + own, (s if cfg.scale == "continuous" else 0.0) - t
    elif cfg.alpha == 1.0:
        share = s * (a - b) - own
        slope = s * (a - b) + (0.0 if cfg.scale == "continuous" else s)
    else:
        scale = 1.0 / (cfg.alpha * (1.0 - cfg.alpha)) if cfg.scale == "continuous" else 1.0
        # log(S/M) and log(T/M) come from log(T/S) alone, because the rounding error of a
        # log-probability is up to a million times log(S/M) at a small alpha.
        odds = (b - a) + (math.log(cfg.alpha) - math.log1p(-cfg.alpha))
        rest = jnp.log1p(jnp.exp(-jnp.abs(odds)))
        log_s = -(math.log1p(-cfg.alpha) + jnp.maximum(odds, 0.0) + rest)
        log_t = -(math.log(cfg.alpha) + jnp.maximum(-odds, 0.0) + rest)
        slope = (scale * (1.0 - cfg.alpha)) * s * log_s
        share = slope + (scale * cfg.alpha) * t * log_t
    if cfg.pointwise_clip is not None:
        slope = jnp.where(share <= cfg.pointwise_clip, slope, 0.0)
        share = jnp.minimum(share, cfg.pointwise_clip)
    return share, slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _over_bins(
    student: jax.Array, teacher: jax.Array, kept: Selection | None, cfg: Loss
) -> jax.Array:
    """Returns the divergence over the kept entries and, with cfg.tail, one bin of the others.

    `kept` None keeps all. The gradient is in closed form: one more pass over the logits.
    """
    return _over_bins_forward(student, teacher, kept, cfg)[0]


def _keep(student: jax.Array, teacher: jax.Array, kept: Selection, cfg: Loss) -> jax.Array:
    return selected(student if cfg.top_k_by == "student" else teacher, kept)


def _over_bins_forward(
    student: jax.Array, teacher: jax.Array, kept: Selection | None, cfg: Loss
) -> tuple[jax.Array, Any]:
    keep = None if kept is None else _keep(student, teacher, kept, cfg)
    over = None if cfg.tail else keep
    norm_s, norm_t = log_normalizer(student, over), log_normalizer(teacher, over)
    a, b = student - norm_s[..., None], teacher - norm_t[..., None]
    share, slope = _shares(a, b, cfg)
    if keep is not None:
        share, slope = jnp.where(keep, share, 0.0), jnp.where(keep, slope, 0.0)
    terms = [share, slope]
    if keep is not None and cfg.tail:
        terms += [jnp.where(keep, 0.0, jnp.exp(x)) for x in (a, b)]
    value, total, *tails = sums(*terms)
    each = jnp.zeros_like(total)
    if tails:
        tail_s, tail_t = tails
        floored = jnp.maximum(tail_s, TAIL_FLOOR)
        more, tail_slope = _shares(jnp.log(floored), jnp.log(jnp.maximum(tail_t, TAIL_FLOOR)), cfg)
        tail_slope = jnp.where(tail_s > TAIL_FLOOR, tail_slope, 0.0)
        value, total, each = value + more, total + tail_slope, tail_slope / floored
    return value, (student, teacher, kept, norm_s, norm_t, total, each)


def _over_bins_backward(cfg: Loss, saved: Any, g: jax.Array) -> tuple[jax.Array, None, None]:
    student, teacher, kept, norm_s, norm_t, total, each = saved
    if jax.default_backend() == "gpu":
        # Without the barrier XLA would keep the slopes of the forward pass, because their values
        # are the same. That costs one pass that writes float32 and one that reads it. Computing
        # them a second time costs nothing next to reading the logits.
        student, teacher = jax.lax.optimization_barrier((student, teacher))
    a, b = student - norm_s[..., None], teacher - norm_t[..., None]
    p = jnp.exp(a)
    _, slope = _shares(a, b, cfg)
    pull = slope - p * total[..., None]
    if kept is not None:
        others = p * (each - total)[..., None] if cfg.tail else 0.0
        pull = jnp.where(_keep(student, teacher, kept, cfg), pull, others)
    return g[..., None] * pull, None, None


_over_bins.defvjp(_over_bins_forward, _over_bins_backward)


# Reductions over a vocabulary. Each is a single pass, with a gradient in closed form.


def log_normalizer(logits: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """Returns log sum exp over the last axis, over the entries of `keep` if given.

    Do not differentiate it: the functions that call it have gradients in closed form.
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


def entropy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the entropy in nats of softmax(logits) over the last axis, and its open tokens.

    The second is the number of entries with forks.PROBABILITY or more, float32[...].
    """
    a = logits - log_normalizer(logits)[..., None]
    p_log_p, open_tokens = sums(jnp.exp(a) * a, _is_open(a))
    return -p_log_p, open_tokens


def _is_open(logprobs: jax.Array) -> jax.Array:
    """Returns 1.0 for an entry with forks.PROBABILITY or more, else 0.0."""
    return (logprobs >= math.log(forks.PROBABILITY)).astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of two distributions over the last axis, float32[...] in nats."""

    p_entropy: jax.Array
    q_entropy: jax.Array
    p_open: jax.Array  # number of entries with forks.PROBABILITY or more
    q_open: jax.Array
    kl: jax.Array  # KL(p || q)
    q_log_prob: jax.Array  # of the token
    same_top: jax.Array  # bool[...]: whether an entry has the largest logit in both


def compare(p_logits: jax.Array, q_logits: jax.Array, token: jax.Array) -> Comparison:
    """Returns the comparison of softmax(p_logits) and softmax(q_logits) at int32[...] tokens."""
    a = p_logits - log_normalizer(p_logits)[..., None]
    b = q_logits - log_normalizer(q_logits)[..., None]
    p, q = jnp.exp(a), jnp.exp(b)
    p_log_p, q_log_q, kl, own, p_open, q_open = sums(
        p * a,
        q * b,
        p * (a - b),
        jnp.where(is_token(b, token), b, 0.0),
        _is_open(a),
        _is_open(b),
    )
    tops = [x == jnp.max(x, axis=-1, keepdims=True) for x in (p_logits, q_logits)]
    return Comparison(
        p_entropy=-p_log_p,
        q_entropy=-q_log_q,
        p_open=p_open,
        q_open=q_open,
        kl=kl,
        q_log_prob=own,
        same_top=jnp.any(tops[0] & tops[1], axis=-1),
    )


def sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the sum of each term over the last axis.

    On a GPU one reduction computes all of them, because XLA would otherwise write a value that two
    terms share to memory and read it back. On a CPU such a reduction is slower than one pass each.
    """
    if jax.default_backend() != "gpu":
        return tuple(jnp.sum(x, axis=-1) for x in terms)
    zeros = (jnp.float32(0),) * len(terms)
    return jax.lax.reduce(
        terms, zeros, lambda x, y: tuple(map(jnp.add, x, y)), (terms[0].ndim - 1,)
    )


def is_top(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Returns bool[...]: whether no entry is likelier than `token` int32[...].

    The logits must be finite: XLA may leave a NaN out of a maximum.
    """
    own = jnp.max(logits, axis=-1, where=is_token(logits, token), initial=-jnp.inf)
    return own == jnp.max(logits, axis=-1)
