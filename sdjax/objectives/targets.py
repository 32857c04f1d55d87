"""Makes the distribution that the student is moved toward, from what models say in contexts.

log target = sum over contexts j of w_j log p_j + constant. A rule is a function
`f(logits, cfg)` of the logits float32[..., V] of each context by name, after temperature, and of
the `Target` section. It returns the target's logits float32[..., V]. No gradient passes through.
Constants per position do not matter. To add a rule, write it here and name it in TARGETS, with the
contexts that it reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sdjax.config.sections.target import (
    PLAIN,
    REFERENCE,
    SOLUTION,
    STUDENT,
    UNRELATED,
    WRONG,
    Target,
)
from sdjax.errors import UserError
from sdjax.objectives.divergences import log_normalizer

GAP_BOUND = 10.0
"""pointwise_information: bound of a log-ratio, in nats."""
LARGEST_MIX, MIX_SLOPE = 0.15, 50.0
"""disagreement: the student's largest share, and how fast it grows with the divergence."""

Logits = Mapping[str, jax.Array]
Weights = Mapping[str, float | jax.Array]


def mixed(logits: Logits, weights: Weights, support: float = 0.0) -> jax.Array:
    """Returns the logits of the signed geometric mix, float32[..., V].

    Args:
        logits: Those of each context by name.
        weights: The weight of each context that counts: a number, or float32[..., 1] per token.
        support: Entries less likely than this share of the likeliest one, under the contexts of
            positive weight, keep the probabilities which these alone give. Then only numbers can
            be weights.
    """
    if not support:
        return _sum(weight * logits[name] for name, weight in weights.items())
    logp = {name: log_softmax(logits[name]) for name in weights}
    positive = {name: weight for name, weight in weights.items() if weight > 0}
    total = sum(positive.values())
    base = log_softmax(_sum(weight / total * logp[name] for name, weight in positive.items()))
    whole = _sum(weight * logp[name] for name, weight in weights.items())
    likely = base >= jnp.max(base, axis=-1, keepdims=True) + math.log(support)
    return jnp.where(likely, whole, base)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def log_softmax(logits: jax.Array) -> jax.Array:
    """Returns the log-probabilities, float32[..., V]; do not differentiate it."""
    return logits - log_normalizer(logits)[..., None]


def one_context(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the distribution in the context cfg.context, as in SDPO."""
    return logits[cfg.context]


def by_weights(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the mix with the weights of cfg.weights."""
    return mixed(logits, cfg.of_weights(), cfg.support)


def pointwise_information(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the plain teacher, moved along what the question adds to the solution.

    log target = log plain + strength x 10 tanh(d / 10), with d = log solution - log reference less
    its mean over the vocabulary. The context "reference" shows the solution without the question,
    so d is the pointwise mutual information of question and token (Purified OPSD,
    arXiv:2607.02234). The style of the shown text is in both contexts, and goes.
    """
    gap = log_softmax(logits[SOLUTION]) - log_softmax(logits[REFERENCE])
    gap -= jnp.mean(gap, axis=-1, keepdims=True)
    bounded = GAP_BOUND * jnp.tanh(gap / GAP_BOUND)
    return logits[PLAIN] + cfg.strength * bounded


def success_minus_failure(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the plain teacher, steered toward a success and away from a failure.

    log target = log plain + strength (log solution - log wrong), where the context "wrong" shows a
    failed completion of the same question (OGLS-SD, arXiv:2605.12400, which takes means over
    several of each).
    """
    return mixed(logits, _contrast(PLAIN, SOLUTION, WRONG, cfg.strength), cfg.support)


def plain_contrast(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the teacher after the plain prompt, moved along what the right solution adds to an
    unrelated one.

    log target = log plain + strength (log solution - log unrelated). A rule of sdjax: the control
    of arXiv:2608.09228 as the second context of a contrast.
    """
    return mixed(logits, _contrast(PLAIN, SOLUTION, UNRELATED, cfg.strength), cfg.support)


def disagreement(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the teacher, mixed with the student where they disagree (DemoPSD, arXiv:2607.02502).

    log target = (1 - a) log solution + a log student, per token, with
    a = 2 x 0.15 strength (sigmoid(50 d) - 1/2) and d their Jensen-Shannon divergence in nats.
    """
    student, solution = (log_softmax(logits[name]) for name in (STUDENT, SOLUTION))
    p, q = jnp.exp(student), jnp.exp(solution)
    middle = jnp.log(jnp.maximum((p + q) / 2, 1e-37))
    apart = jnp.sum(p * (student - middle) + q * (solution - middle), axis=-1, keepdims=True) / 2
    a = 2 * LARGEST_MIX * cfg.strength * (jax.nn.sigmoid(MIX_SLOPE * apart) - 0.5)
    return mixed({STUDENT: student, SOLUTION: solution}, {SOLUTION: 1 - a, STUDENT: a})


def away(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the student, moved away from the teacher: anti-distillation as a target.

    log target = (1 + strength) log student - strength log solution. The token weights "anti"
    ascend the divergence instead (AntiSD, arXiv:2605.11609); this target is bounded.
    """
    weights = {STUDENT: 1.0 + cfg.strength, SOLUTION: -cfg.strength}
    return mixed(logits, weights, cfg.support)


def trust_region(logits: Logits, cfg: Target) -> jax.Array:
    """Returns a mix with constant weights: (1 - strength) log student + strength log solution.

    Unlike teacher.kind trust_region (arXiv:2601.20802 section 3.3), which reads the student's
    weights after the reprompt, it holds the target near the student's own distribution.
    """
    return mixed(logits, {STUDENT: 1.0 - cfg.strength, SOLUTION: cfg.strength}, cfg.support)


def _contrast(base: str, more: str, less: str, strength: float) -> dict[str, float]:
    """Returns the weights of log base + strength (log more - log less)."""
    weights = dict.fromkeys((base, more, less), 0.0)
    weights[base] += 1.0
    weights[more] += strength
    weights[less] -= strength
    return {name: weight for name, weight in weights.items() if weight}


@dataclass(frozen=True, kw_only=True)
class TargetRule:
    """How a target is made, and from which contexts."""

    logits: Callable[[Logits, Target], jax.Array]
    contexts: tuple[str, ...] = ()
    """Those that it reads besides the student's; () is those that the section names."""


TARGETS: dict[str, TargetRule] = {
    "context": TargetRule(logits=one_context),
    "weights": TargetRule(logits=by_weights),
    "pointwise_information": TargetRule(
        logits=pointwise_information, contexts=(SOLUTION, REFERENCE, PLAIN)
    ),
    "success_minus_failure": TargetRule(
        logits=success_minus_failure, contexts=(SOLUTION, WRONG, PLAIN)
    ),
    "plain_contrast": TargetRule(logits=plain_contrast, contexts=(SOLUTION, UNRELATED, PLAIN)),
    "disagreement": TargetRule(logits=disagreement, contexts=(SOLUTION,)),
    "away": TargetRule(logits=away, contexts=(SOLUTION,)),
    "trust_region": TargetRule(logits=trust_region, contexts=(SOLUTION,)),
}


def contexts(cfg: Target) -> tuple[str, ...]:
    """Returns the contexts that the target reads besides the student's.

    Raises UserError where there is no such rule.
    """
    if cfg.rule not in TARGETS:
        raise UserError(f"target.rule is {cfg.rule!r}: one of {', '.join(TARGETS)}")
    named = TARGETS[cfg.rule].contexts or cfg.named
    return tuple(name for name in named if name != STUDENT)


def make(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the logits of the target, float32[..., V], from those of each context by name."""
    return TARGETS[cfg.rule].logits(logits, cfg)
