"""Gives each token its credit in the policy gradient, from the reward and from a teacher's contexts.

A credit is a function `f(facts, cfg)` of the tokens' CreditFacts and the `Policy` section. It
returns the advantage of each token, float32[...], which carries no gradient. The policy loss then
clips and weighs as ever. To add one, write it here and name it in CREDITS, with the contexts that
it reads and the completions that can have credit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import Policy
from sdjax.config.sections.target import SOLUTION, WRONG
from sdjax.errors import UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CreditFacts:
    """What a credit may read of each token; all arrays have one shape."""

    advantage: jax.Array  # float32[...], of the completion
    distilled: jax.Array  # bool[...]: every context has what it shows
    student_logprob: jax.Array  # float32[...]
    context_logprobs: dict[str, jax.Array]  # float32[...], by context


Credit = Callable[[CreditFacts, Policy], jax.Array]


def advantage(facts: CreditFacts, cfg: Policy) -> jax.Array:
    """Returns the advantage of the completion at every token, as in GRPO."""
    del cfg
    return facts.advantage


def contrast(facts: CreditFacts, cfg: Policy) -> jax.Array:
    """Returns the advantage plus what a solution adds to a failed attempt (arXiv:2606.11709).

    A + strength x (log p(token | solution) - log p(token | wrong)), the difference clipped to
    +-credit_clip nats. What both contexts do to the style cancels. Without both it is A.
    """
    gap = facts.context_logprobs[SOLUTION] - facts.context_logprobs[WRONG]
    dense = cfg.credit_strength * jnp.clip(gap, -cfg.credit_clip, cfg.credit_clip)
    return facts.advantage + jnp.where(facts.distilled, dense, 0.0)


def signed_gap(facts: CreditFacts, cfg: Policy) -> jax.Array:
    """Returns the advantage, larger where the teacher agrees with its sign (arXiv:2604.03128).

    A x (teacher / student)^(strength x sign A), the factor clipped to [1 / c, c] with
    c = exp(credit_clip). The reward gives the sign and the teacher the size. Without a solution
    it is A.
    """
    gap = facts.context_logprobs[SOLUTION] - facts.student_logprob
    log_factor = cfg.credit_strength * jnp.sign(facts.advantage) * gap
    factor = jnp.exp(jnp.clip(log_factor, -cfg.credit_clip, cfg.credit_clip))
    return facts.advantage * jnp.where(facts.distilled, factor, 1.0)


def unlikely(facts: CreditFacts, cfg: Policy) -> jax.Array:
    """Returns -strength at tokens that the student finds unlikely, else 0 (arXiv:2608.31046).

    A control without teacher and reward: unlikely is a probability under credit_threshold.
    """
    low = facts.student_logprob < jnp.log(cfg.credit_threshold)
    return jnp.where(low, -cfg.credit_strength, 0.0)


@dataclass(frozen=True, kw_only=True)
class CreditRule:
    """How tokens get credit, from which contexts, and which completions can have any."""

    credit: Credit
    contexts: tuple[str, ...] = ()
    dense: bool = False
    """Whether a completion has credit whatever its advantage, where its contexts have what they
    show."""


CREDITS: dict[str, CreditRule] = {
    "advantage": CreditRule(credit=advantage),
    "contrast": CreditRule(credit=contrast, contexts=(SOLUTION, WRONG), dense=True),
    "signed_gap": CreditRule(credit=signed_gap, contexts=(SOLUTION,)),
    "unlikely": CreditRule(credit=unlikely, dense=True),
}


def get(name: str) -> CreditRule:
    """Returns the credit of that name; raises UserError where there is none."""
    if name not in CREDITS:
        raise UserError(f"policy.credit is {name!r}: one of {', '.join(CREDITS)}")
    return CREDITS[name]


def has_credit(cfg: Policy, advantage: np.ndarray, distilled: np.ndarray) -> np.ndarray:
    """Returns bool[B]: the completions whose tokens can have credit.

    `advantage` is float[B]. `distilled` is bool[B]: every context has what it shows.
    """
    rule = get(cfg.credit)
    if not rule.dense:
        return advantage != 0
    return (advantage != 0) | distilled if rule.contexts else np.ones_like(distilled)
