"""Makes the distribution that the student is moved toward, from what models say in contexts.

log target = sum over contexts j of w_j log p_j + constant. A rule is a function
`f(logits, cfg)` of the logits float32[..., V] of each context by name, after temperature, and of
the `Target` section. It returns the target's logits float32[..., V]. No gradient passes through.
Constants per position do not matter. To add a rule, write it here and name it in TARGETS, with the
contexts that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
    if list(weights.values()) == [1.0]:
        (name,) = weights
        return logits[name]
    if not support:
        first, *others = (weight * logits[name] for name, weight in weights.items())
        return sum(others, first)
    logp = {name: log_softmax(logits[name]) for name in weights}
    positive = {name: weight for name, weight in weights.items() if weight > 0}
    total = sum(positive.values())
    base = log_softmax(sum(weight / total * logp[name] for name, weight in positive.items()))
    whole = sum(weight * logp[name] for name, weight in weights.items())
    likely = base >= jnp.max(base, axis=-1, keepdims=True) + math.log(support)
    return jnp.where(likely, whole, base)


def log_softmax(logits: jax.Array) -> jax.Array:
    """Returns the log-probabilities, float32[..., V]; do not differentiate it."""
    return logits - log_normalizer(logits)[..., None]


def by_weights(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the mix with the weights of cfg.weights."""
    return mixed(logits, cfg.of_weights(), cfg.support)


def pointwise_information(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the student, moved along what the question adds to the solution.

    log target = log student + strength (log solution - log reference), where the context
    "reference" shows the solution without the question. The difference is the pointwise mutual
    information of question and token given the solution (Purified OPSD, arXiv:2607.02234): the
    style of the shown text is in both, and goes.
    """
    return mixed(logits, _contrast(STUDENT, SOLUTION, REFERENCE, cfg.strength), cfg.support)


def success_minus_failure(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the teacher after a success, steered away from what it says after a failure.

    log target = log solution + strength (log solution - log wrong), where the context "wrong"
    shows a failed completion of the same question (OGLS-SD, arXiv:2605.12400).
    """
    return mixed(logits, _contrast(SOLUTION, SOLUTION, WRONG, cfg.strength), cfg.support)


def plain_contrast(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the teacher after the plain prompt, moved along what the right solution adds to an
    unrelated one.

    log target = log plain + strength (log solution - log unrelated). A rule of sdjax: the control
    of arXiv:2608.09228 as the second context of a contrast.
    """
    return mixed(logits, _contrast(PLAIN, SOLUTION, UNRELATED, cfg.strength), cfg.support)


def disagreement(logits: Logits, cfg: Target) -> jax.Array:
    """Returns a mix of student and teacher that follows the teacher less where they disagree.

    log target = (1 - w) log student + w log solution, per token, with w = exp(-strength d) and d
    their Jensen-Shannon divergence in bits, from 0 to 1. The weight by disagreement is that of
    DemoPSD (arXiv:2607.02502); the exponential is a choice of sdjax.
    """
    student, solution = (log_softmax(logits[name]) for name in (STUDENT, SOLUTION))
    p, q = jnp.exp(student), jnp.exp(solution)
    middle = jnp.log(jnp.maximum((p + q) / 2, 1e-37))
    nats = jnp.sum(p * (student - middle) + q * (solution - middle), axis=-1, keepdims=True) / 2
    weight = jnp.exp(-cfg.strength * nats / math.log(2))
    return mixed({STUDENT: student, SOLUTION: solution}, {STUDENT: 1 - weight, SOLUTION: weight})


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
    """Those that it reads besides the student's; () is those of target.weights."""


TARGETS: dict[str, TargetRule] = {
    "weights": TargetRule(logits=by_weights),
    "pointwise_information": TargetRule(
        logits=pointwise_information, contexts=(SOLUTION, REFERENCE)
    ),
    "success_minus_failure": TargetRule(logits=success_minus_failure, contexts=(SOLUTION, WRONG)),
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
    named = TARGETS[cfg.rule].contexts or tuple(cfg.of_weights())
    return tuple(name for name in named if name != STUDENT)


def make(logits: Logits, cfg: Target) -> jax.Array:
    """Returns the logits of the target, float32[..., V], from those of each context by name."""
    return TARGETS[cfg.rule].logits(logits, cfg)
