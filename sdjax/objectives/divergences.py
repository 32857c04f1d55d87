"""How far the student's next-token distribution is from the teacher's, at every token.

Conventions (arXiv:2601.20802, arXiv:2603.24472): S student, T teacher, M = (1 - alpha) S + alpha T.

    alpha 0        KL(T || S), forward
    alpha 1        KL(S || T), reverse
    0 < alpha < 1  (1 - alpha) KL(S || M) + alpha KL(T || M), generalised Jensen-Shannon

The last line tends to 0, not to the KLs, as alpha nears 0 or 1: with scale "reference" a sweep of
alpha is a sweep of the learning rate by factors of 10 to 1000, with a jump at both ends. Scale
"continuous" divides it by alpha (1 - alpha), which makes the two KLs its limits (JSD x 4).

A divergence is a function of logits [..., V] (float32, temperature applied), sampled tokens [...]
and the `Loss` section; it returns float32[...] and passes gradients to the student only. To add
one, write it here and name it in DIVERGENCES.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import Loss
from sdjax.errors import UserError
from sdjax.objectives.reductions import log_normalizer, log_prob, sums
from sdjax.objectives.selection import Selection, selected
from sdjax.objectives.selection import top_k as select_top_k

Divergence = Callable[[jax.Array, jax.Array, jax.Array, Loss], jax.Array]

TAIL_FLOOR = -math.expm1(-1e-7)
"""Least probability of the tail bin: the reference keeps the log-sum of the top k below -1e-7."""


def full(student: jax.Array, teacher: jax.Array, token: jax.Array, cfg: Loss) -> jax.Array:
    """Returns the divergence over the whole vocabulary (arXiv:2601.20802 section 3.1)."""
    del token
    return _clipped(_over_bins(student, jax.lax.stop_gradient(teacher), None, cfg), cfg)


def top_k(student: jax.Array, teacher: jax.Array, token: jax.Array, cfg: Loss) -> jax.Array:
    """Returns the divergence over the cfg.top_k likeliest tokens of student or teacher.

    With cfg.tail the other tokens form one more bin; without, both sides are renormalised over
    the kept ones. Which tokens are kept carries no gradient.
    """
    del token
    teacher = jax.lax.stop_gradient(teacher)
    by = jax.lax.stop_gradient(student) if cfg.top_k_by == "student" else teacher
    chosen = select_top_k(by, min(cfg.top_k, by.shape[-1]))
    return _clipped(_over_bins(student, teacher, chosen, cfg), cfg)


def sampled(student: jax.Array, teacher: jax.Array, token: jax.Array, cfg: Loss) -> jax.Array:
    """Returns a loss at the sampled token only: c log S(y), c without gradient.

    For y drawn from the student, its gradient's expectation is that of `full` under the same
    alpha and scale: grad GJSD = (1 - alpha) E_S[log(S / M) grad log S], so

        alpha 0        c = 1 - T/S   (E[grad log S] = 0 lets the 1 in: less variance)
        0 < alpha < 1  c = (1 - alpha) log(S/M); scale "continuous": log(S/M) / alpha
        alpha 1        c = log(S/T), the reference's estimator

    Its value is no divergence, and can be negative. cfg.token_clip bounds c from above.
    """
    a = log_prob(student, token)
    b = log_prob(jax.lax.stop_gradient(teacher), token)
    gap = b - jax.lax.stop_gradient(a)
    if cfg.alpha == 0.0:
        c = -jnp.expm1(gap)
    elif cfg.alpha == 1.0:
        c = -gap
    else:
        c = _scale(cfg) * (1.0 - cfg.alpha) * _log_over_mixture(gap, cfg.alpha)[0]
    return _clipped(c, cfg) * a


DIVERGENCES: dict[str, Divergence] = {"full": full, "top_k": top_k, "sampled": sampled}


def get(name: str) -> Divergence:
    """Returns the divergence of that name."""
    if name not in DIVERGENCES:
        raise UserError(f"loss.divergence is {name!r}: one of {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def _clipped(x: jax.Array, cfg: Loss) -> jax.Array:
    return x if cfg.token_clip is None else jnp.minimum(x, cfg.token_clip)


def _scale(cfg: Loss) -> float:
    inner = 0.0 < cfg.alpha < 1.0 and cfg.scale == "continuous"
    return 1.0 / (cfg.alpha * (1.0 - cfg.alpha)) if inner else 1.0


def _log_over_mixture(gap: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Returns log(S/M) and log(T/M) from gap = log(T/S).

    Written with the gap alone, so that rounding of the log-probabilities themselves, a million
    times larger than a small alpha leaves of log(S/M), does not enter.
    """
    d = gap + (math.log(alpha) - math.log1p(-alpha))
    rest = jnp.log1p(jnp.exp(-jnp.abs(d)))
    log_s = -(math.log1p(-alpha) + jnp.maximum(d, 0.0) + rest)
    log_t = -(math.log(alpha) + jnp.maximum(-d, 0.0) + rest)
    return log_s, log_t


def _shares(a: jax.Array, b: jax.Array, cfg: Loss) -> tuple[jax.Array, jax.Array]:
    """Returns each bin's share of the divergence, and its derivative by a = log S, at b = log T.

    Shares of a KL sum to the same with and without s - t at each bin; scale "continuous" has it,
    so that no share is negative, which a pointwise clip could turn into a negative divergence;
    scale "reference" has not, as the papers ran.
    """
    s, t = jnp.exp(a), jnp.exp(b)
    own = (s - t) if cfg.scale == "continuous" else 0.0
    if cfg.alpha == 0.0:
        share, slope = t * (b - a) + own, (s if cfg.scale == "continuous" else 0.0) - t
    elif cfg.alpha == 1.0:
        share = s * (a - b) - own
        slope = s * (a - b) + (0.0 if cfg.scale == "continuous" else s)
    else:
        log_s, log_t = _log_over_mixture(b - a, cfg.alpha)
        slope = (_scale(cfg) * (1.0 - cfg.alpha)) * s * log_s
        share = slope + (_scale(cfg) * cfg.alpha) * t * log_t
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
        # Seen as the forward pass's own, the slopes would be kept: a pass that writes them and
        # one that reads them, float32, where making them again is free beside reading the logits.
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
