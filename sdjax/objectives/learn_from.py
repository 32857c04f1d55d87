"""Chooses the completions and tokens that the divergence learns from.

A choice is a function `f(stats, cfg, mean)` of the tokens' TokenStats, the `Loss` section and a
function. `mean(x, where)` is the mean of x over a completion's tokens where `where` holds, at each
of its tokens. The choice returns float32[...], without gradient, which multiplies the token
weights. It does not enter the denominators. To add one, write it here and name it in LEARN_FROM.
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

LARGEST_GAP, LARGEST_WEIGHT = 2.5, 10.0
"""pivotal: bounds of a token's log-ratio in nats, and of a completion's weight."""


def everything(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at every token."""
    del cfg, mean
    return jnp.ones(stats.token.shape, jnp.float32)


def right(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 in completions that are right, else 0."""
    del cfg, mean
    return stats.correct.astype(jnp.float32)


def wrong(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 in completions that are wrong, else 0."""
    del cfg, mean
    return 1.0 - stats.correct.astype(jnp.float32)


def pivotal(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns more than 1 in completions whose pivotal tokens the teacher would not have said.

    It is exp of the mean of r over pivotal tokens, at most 10. Here r is the smaller of
    log student - log teacher and 2.5. A token is pivotal where r is at least cfg.pivotal_gap
    (ReNIO, arXiv:2606.23104). The paper's division by the mean over the batch is left out. Without
    pivotal tokens it is 1.
    """
    ratio = jnp.minimum(stats.student_logprob - stats.teacher_logprob, LARGEST_GAP)
    return jnp.minimum(jnp.exp(mean(ratio, ratio >= cfg.pivotal_gap)), LARGEST_WEIGHT)


def early(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at the first cfg.learn_share of the tokens, else 0 (arXiv:2606.22600)."""
    del mean
    return (stats.index < cfg.learn_share * stats.length).astype(jnp.float32)


def late(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at the last cfg.learn_share of the tokens, else 0."""
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
