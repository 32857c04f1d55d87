"""Chooses the completions and tokens that the divergence learns from.

A choice is a function `f(stats, cfg, mean)` of the tokens' TokenStats, the `Loss` section and a
function `mean(x, where)`: the mean of x over the tokens of the completion where `where` holds, at
each of its tokens. It returns float32[...], without gradient, which multiplies the token weights.
It does not enter the denominators. To add one, write it here and name it in LEARN_FROM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sdjax.config import Loss
from sdjax.errors import UserError
from sdjax.objectives.token_weights import TokenStats

CompletionMean = Callable[[jax.Array, jax.Array], jax.Array]
Choice = Callable[[TokenStats, Loss, CompletionMean], jax.Array]

LARGEST_RATIO = 2.0
"""The bound of a completion's weight in `pivotal`, and of its inverse."""


def everything(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at every token."""
    del cfg, mean
    return jnp.ones(stats.token.shape, jnp.float32)


def right(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 in completions that are right, else 0."""
    del cfg, mean
    return stats.correct.astype(jnp.float32)


def wrong(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 in completions that are wrong, else 0.

    Learning from wrong answers only keeps more words of doubt (ReNIO, arXiv:2606.23104).
    """
    del cfg, mean
    return 1.0 - stats.correct.astype(jnp.float32)


def pivotal(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns the ratio of student to teacher over a completion's pivotal tokens (ReNIO).

    exp of the mean of log(student / teacher) over tokens where the student's entropy is at least
    cfg.pivotal_entropy, clipped to [1/2, 2]. So completions count more where the teacher would not
    have gone. arXiv:2606.23104 gives the ratio and the pivots; the mean and the bounds are choices
    of sdjax.
    """
    gap = stats.student_logprob - stats.teacher_logprob
    log_ratio = mean(gap, stats.student_entropy >= cfg.pivotal_entropy)
    return jnp.clip(jnp.exp(log_ratio), 1 / LARGEST_RATIO, LARGEST_RATIO)


def early(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at the first cfg.learn_share of a completion's tokens, else 0 (arXiv:2606.22600)."""
    del mean
    return (stats.index < cfg.learn_share * stats.length).astype(jnp.float32)


def late(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at the last cfg.learn_share of a completion's tokens, else 0."""
    del mean
    return (stats.index >= (1.0 - cfg.learn_share) * stats.length).astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class LearnRule:
    """What is learned, and whether a token's weight depends on its whole completion."""

    weight: Choice
    whole: bool = False


LEARN_FROM: dict[str, LearnRule] = {
    "all": LearnRule(weight=everything),
    "right": LearnRule(weight=right),
    "wrong": LearnRule(weight=wrong),
    "pivotal": LearnRule(weight=pivotal, whole=True),
    "early": LearnRule(weight=early),
    "late": LearnRule(weight=late),
}


def get(name: str) -> LearnRule:
    """Returns the choice of that name; raises UserError where there is none."""
    if name not in LEARN_FROM:
        raise UserError(f"loss.learn_from is {name!r}: one of {', '.join(LEARN_FROM)}")
    return LEARN_FROM[name]


def completion_mean(sample: jax.Array, number: int) -> CompletionMean:
    """Returns the function `mean(x, where)`; 0 for a completion without such a token.

    `sample` int32[...] is the token's completion, in [0, number), or another value for padding.
    The arrays must hold all tokens of each completion.
    """
    real = (sample >= 0) & (sample < number)
    of = jnp.where(real, sample, number)

    def mean(x: jax.Array, where: jax.Array) -> jax.Array:
        counted = real & where
        total = jax.ops.segment_sum(jnp.where(counted, x, 0.0).ravel(), of.ravel(), number + 1)
        count = jax.ops.segment_sum(counted.astype(jnp.float32).ravel(), of.ravel(), number + 1)
        return (total / jnp.maximum(count, 1.0))[of]

    return mean
