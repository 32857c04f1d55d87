"""Gives each token its credit in the policy gradient, from reward and teacher.

A credit is a function `f(facts, cfg, mean)` of the tokens' CreditFacts, the `Policy` section and a
function (see learn_from.completion_mean). It returns the advantage of each token, float32[...],
which carries no gradient. The policy loss then clips and weighs as ever. To add one, write it here
and name it in CREDITS, with the contexts that it reads and the completions that can have credit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import Policy
from sdjax.config.sections.target import SOLUTION, WRONG
from sdjax.errors import UserError
from sdjax.objectives.learn_from import CompletionMean


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CreditFacts:
    """What a credit may read of each token; all arrays have one shape."""

    advantage: jax.Array  # float32[...], of the completion
    distilled: jax.Array  # bool[...]: every context has what it shows
    student_logprob: jax.Array  # float32[...]
    context_logprobs: dict[str, jax.Array]  # float32[...], by context
    unlikely: jax.Array  # bool[...]: among the update's tokens of lowest probability


GAP_SCALE = 0.02
"""contrast: log-ratios of this size, in nats, count in full."""
LEAST_CHANGE = 0.02
"""contrast_means: a token is changed if its advantage is changed by more."""
FACTOR_CLIP = 0.2
"""signed_gap: how far the factor may be from 1."""

Credit = Callable[[CreditFacts, Policy, CompletionMean], jax.Array]


def advantage(facts: CreditFacts, cfg: Policy, mean: CompletionMean) -> jax.Array:
    """Returns the advantage of the completion at every token, as in GRPO."""
    del cfg, mean
    return facts.advantage


def contrast(facts: CreditFacts, cfg: Policy, mean: CompletionMean) -> jax.Array:
    """Returns the advantage plus what a solution adds to a failed attempt (RLCSD).

    A + strength / 2 x tanh(e / 0.02), with e = log p(token | solution) - log p(token | wrong), and
    without a change of sign (arXiv:2606.11709). What both contexts do to the style cancels. It is
    A where a context is missing. The paper reads up to four failed attempts and averages their
    probabilities; here it is one. Its separate means are those of contrast_means.
    """
    del mean
    sign = jnp.sign(facts.advantage)
    size = jnp.abs(facts.advantage) + sign * _change(facts, cfg)
    return sign * jnp.maximum(size, 0.0)


def contrast_means(facts: CreditFacts, cfg: Policy, mean: CompletionMean) -> jax.Array:
    """Returns `contrast`, where a completion's changed tokens count as much as its others.

    A token is changed if its advantage is changed by more than 0.02. The others keep theirs. The
    loss of a completion is the mean over its changed tokens plus the mean over the others, as in
    RLCSD (arXiv:2606.11709). So a token's credit is divided by the share of its kind. Without
    changed tokens the loss is that of GRPO.
    """
    changed = jnp.abs(_change(facts, cfg)) > LEAST_CHANGE
    everywhere = jnp.ones_like(changed)

    def share(of: jax.Array) -> jax.Array:
        return mean(of.astype(jnp.float32), everywhere)

    of_kind = jnp.where(changed, share(changed), share(~changed))
    credit = jnp.where(changed, contrast(facts, cfg, mean), facts.advantage)
    return credit / jnp.where(of_kind > 0, of_kind, 1.0)  # 0 at padding


def _change(facts: CreditFacts, cfg: Policy) -> jax.Array:
    """Returns the change by a solution against a failed attempt; 0 where one is missing."""
    gap = facts.context_logprobs[SOLUTION] - facts.context_logprobs[WRONG]
    change = cfg.credit_strength / 2 * jnp.tanh(gap / GAP_SCALE)
    return jnp.where(facts.distilled, change, 0.0)


def signed_gap(facts: CreditFacts, cfg: Policy, mean: CompletionMean) -> jax.Array:
    """Returns the advantage, larger where the teacher agrees with its sign (RLSD).

    A (1 - s + s w) with s = strength / 2 and w = (teacher / student)^sign(A), clipped to
    [0.8, 1.2] (arXiv:2604.03128, whose s decays). The reward gives the sign, the teacher the size.
    It is A without a solution.
    """
    del mean
    gap = facts.context_logprobs[SOLUTION] - facts.student_logprob
    w = jnp.clip(jnp.exp(jnp.sign(facts.advantage) * gap), 1 - FACTOR_CLIP, 1 + FACTOR_CLIP)
    share = cfg.credit_strength / 2
    return facts.advantage * jnp.where(facts.distilled, 1 - share + share * w, 1.0)


def unlikely(facts: CreditFacts, cfg: Policy, mean: CompletionMean) -> jax.Array:
    """Returns -strength / 2 at the tokens that the sampler found unlikeliest, else 0.

    They are the policy.credit_share of the update's tokens with the lowest log-probabilities. A
    control without teacher and reward (arXiv:2608.31046).
    """
    del mean
    return jnp.where(facts.unlikely, -cfg.credit_strength / 2, 0.0)


@dataclass(frozen=True, kw_only=True)
class CreditRule:
    """How tokens get credit, from which contexts, and which completions can have any."""

    credit: Credit
    contexts: tuple[str, ...] = ()
    dense: bool = False
    """Whether a completion has credit whatever its advantage."""
    whole: bool = False
    """Whether a token's credit depends on its whole completion."""


CREDITS: dict[str, CreditRule] = {
    "advantage": CreditRule(credit=advantage),
    "contrast": CreditRule(credit=contrast, contexts=(SOLUTION, WRONG)),
    "contrast_means": CreditRule(credit=contrast_means, contexts=(SOLUTION, WRONG), whole=True),
    "signed_gap": CreditRule(credit=signed_gap, contexts=(SOLUTION,)),
    "unlikely": CreditRule(credit=unlikely, dense=True),
}


def get(name: str) -> CreditRule:
    """Returns the credit of that name; raises UserError where there is none."""
    if name not in CREDITS:
        raise UserError(f"policy.credit is {name!r}: one of {', '.join(CREDITS)}")
    return CREDITS[name]


def has_credit(cfg: Policy, advantage: np.ndarray) -> np.ndarray:
    """Returns bool[B]: the completions whose tokens can have credit; `advantage` is float[B]."""
    return np.ones(len(advantage), bool) if get(cfg.credit).dense else advantage != 0


def unlikely_below(cfg: Policy, logprobs: Sequence[np.ndarray]) -> float:
    """Returns the log-probability under which a token is among the update's unlikeliest.

    `logprobs` has those of the sampler, float32[T_i] of each completion.
    """
    every = np.concatenate([*logprobs, np.zeros(1, np.float32)])
    return float(np.quantile(every, cfg.credit_share))
