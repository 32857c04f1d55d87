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
FIRST_TOKEN_MORE = 0.5
"""before_drift: how much more than the last token the first one counts."""


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
    (ReNIO, arXiv:2606.23104). The division by the mean over the batch is left out; see
    pivotal_over_mean. Without pivotal tokens it is 1.
    """
    return jnp.minimum(pivotal_over_mean(stats, cfg, mean), LARGEST_WEIGHT)


def pivotal_over_mean(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns the weight of `pivotal` without its bound; the update divides by the mean of it.

    The mean is over the distilled completions of the update. The authors' program divides by the
    mean over the completions that one device computes at a time (ReNIO, arXiv:2606.23104). It
    bounds the quotient by 10, which only a mean under 1.22 can exceed. No bound is applied here.
    """
    ratio = jnp.minimum(stats.student_logprob - stats.teacher_logprob, LARGEST_GAP)
    return jnp.exp(mean(ratio, ratio >= cfg.pivotal_gap))


def early(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at the first cfg.learn_share of the tokens, else 0."""
    del mean
    return (stats.index < cfg.learn_share * stats.length).astype(jnp.float32)


def late(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1 at the last cfg.learn_share of the tokens, else 0."""
    del mean
    return (stats.index >= (1.0 - cfg.learn_share) * stats.length).astype(jnp.float32)


def before_drift(stats: TokenStats, cfg: Loss, mean: CompletionMean) -> jax.Array:
    """Returns 1.5 at the first token, falling to 1 as student and teacher have differed.

    It is 1 + (1 - before / total) / 2. With a = |log teacher - log student| in nats, `total` is
    the sum of a over the completion, and `before` that over its earlier tokens (IW-OPD,
    arXiv:2606.22600). The paper weighs the sampled token's log-ratio: loss.divergence "sampled".
    """
    del cfg
    gap = jnp.abs(stats.teacher_logprob - stats.student_logprob)
    total = mean(gap, jnp.ones_like(gap, bool)) * stats.length
    before = _sum_so_far(gap, stats.index == 0) - gap
    return 1.0 + FIRST_TOKEN_MORE * (1.0 - before / jnp.maximum(total, 1e-8))


def _sum_so_far(x: jax.Array, first: jax.Array) -> jax.Array:
    """Returns the sums along the last axis, each from the last place where `first` holds."""

    def joined(left: tuple, right: tuple) -> tuple[jax.Array, jax.Array]:
        (a, a_first), (b, b_first) = left, right
        return jnp.where(b_first, b, a + b), a_first | b_first

    return jax.lax.associative_scan(joined, (x, first), axis=-1)[0]


@dataclass(frozen=True, kw_only=True)
class LearnRule:
    """What is learned, and whether a token's weight depends on its whole completion."""

    weight: Choice
    whole: bool = False
    over_mean: bool = False
    """Whether an update divides its loss by the mean weight of its distilled completions."""


LEARN_FROM: dict[str, LearnRule] = {
    "all": LearnRule(weight=everything),
    "right": LearnRule(weight=right),
    "wrong": LearnRule(weight=wrong),
    "pivotal": LearnRule(weight=pivotal, whole=True),
    "pivotal_over_mean": LearnRule(weight=pivotal_over_mean, whole=True, over_mean=True),
    "before_drift": LearnRule(weight=before_drift, whole=True),
    "early": LearnRule(weight=early),
    "late": LearnRule(weight=late),
}


def get(name: str) -> LearnRule:
    """Returns the choice of that name; raises UserError where there is none."""
    if name not in LEARN_FROM:
        raise UserError(f"loss.learn_from is {name!r}: one of {', '.join(LEARN_FROM)}")
    return LEARN_FROM[name]


def check(cfg: Loss) -> None:
    """Raises UserError if the section names no choice, or one that its loss cannot have."""
    if get(cfg.learn_from).over_mean and 0 < cfg.distillation < 1:
        raise UserError(
            f"loss.distillation is {cfg.distillation}: must be 1 with loss.learn_from "
            f"{cfg.learn_from!r}, which divides the whole loss"
        )


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
