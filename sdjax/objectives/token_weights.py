"""Weighs tokens: how much each counts in the divergence, and what one token is of the whole loss.

A scheme is a function `f(stats, cfg)` of the tokens' TokenStats and the `Loss` section. It returns
float32[...], which carries no gradient. It multiplies the divergence before aggregation, and does
not enter the denominators of the aggregation. To add a scheme, write it here and name it in
TOKEN_WEIGHTS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.config import Loss
from sdjax.errors import UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """What a scheme may read of each token; all arrays have one shape."""

    token: jax.Array  # int32[...]
    index: jax.Array  # int32[...], position in its completion, from 0
    length: jax.Array  # int32[...], of its completion
    student_logprob: jax.Array  # float32[...]
    teacher_logprob: jax.Array  # float32[...]
    student_entropy: jax.Array  # float32[...], nats
    teacher_entropy: jax.Array  # float32[...], nats
    pass_rate: jax.Array  # float32[...], share of correct completions in its group
    epistemic: jax.Array  # bool[...], part of an epistemic word
    correct: jax.Array  # bool[...], its completion is


TokenWeights = Callable[[TokenStats, Loss], jax.Array]


def uniform(stats: TokenStats, cfg: Loss) -> jax.Array:
    """Returns 1 at every token."""
    del cfg
    return jnp.ones(stats.token.shape, jnp.float32)


def position(stats: TokenStats, cfg: Loss) -> jax.Array:
    """Returns weights that rise along the completion (PW-OPSD, arXiv:2605.21606).

    floor + (1 - floor) sigmoid((x - center) / width), where x in (0, 1) is the middle of the token.
    The teacher is least reliable at early tokens, where the solution branches.
    """
    x = (stats.index + 0.5) / jnp.maximum(stats.length, 1)
    rise = jax.nn.sigmoid((x - cfg.position_center) / cfg.position_width)
    return cfg.weight_floor + (1.0 - cfg.weight_floor) * rise


def teacher_entropy(stats: TokenStats, cfg: Loss) -> jax.Array:
    """Returns weights that fall with the teacher's entropy to a floor over 0 (arXiv:2605.13255).

    floor + (1 - floor) exp(-H / scale). The abstract of the paper gives the direction and the
    floor; the shape in between is a choice of sdjax.
    """
    sure = jnp.exp(-stats.teacher_entropy / cfg.entropy_scale)
    return cfg.weight_floor + (1.0 - cfg.weight_floor) * sure


def pass_rate(stats: TokenStats, cfg: Loss) -> jax.Array:
    """Returns sqrt(p (1 - p)), p the pass rate of the token's question (arXiv:2605.27765).

    Questions of middling difficulty count most, as in the advantages of GRPO. A question that all
    completions or none solve has weight 0. The normalisation over the batch, which the paper has,
    is left out.
    """
    del cfg
    p = stats.pass_rate
    return jnp.sqrt(jnp.maximum(p * (1.0 - p), 0.0))


def anti(stats: TokenStats, cfg: Loss) -> jax.Array:
    """Returns -1 where the teacher's entropy reaches the gate, else 0 (AntiSD, arXiv:2605.11609).

    The student ascends the divergence, because the teacher knows the solution and so undervalues
    deliberation. Where the teacher is all but certain, its ratio to the student says nothing. The
    paper opens and shuts its gate for whole steps, by the median entropy of the batch; this gate
    is per token. The paper adds the term to a GRPO loss: loss.distillation under 1, divergence
    sampled, alpha 0.5.
    """
    return jnp.where(stats.teacher_entropy >= cfg.entropy_gate, -1.0, 0.0)


def epistemic(stats: TokenStats, cfg: Loss) -> jax.Array:
    """Returns cfg.epistemic_weight at tokens of epistemic words ("wait", "perhaps"), else 1.

    With a low weight the distillation hardly teaches the student to stop saying these words.
    arXiv:2603.24472 finds that it otherwise does.
    """
    return jnp.where(stats.epistemic, cfg.epistemic_weight, 1.0)


TOKEN_WEIGHTS: dict[str, TokenWeights] = {
    "uniform": uniform,
    "position": position,
    "teacher_entropy": teacher_entropy,
    "pass_rate": pass_rate,
    "anti": anti,
    "epistemic": epistemic,
}


def get(name: str) -> TokenWeights:
    """Returns the scheme of that name; raises UserError where there is none."""
    if name not in TOKEN_WEIGHTS:
        raise UserError(f"loss.token_weights is {name!r}: one of {', '.join(TOKEN_WEIGHTS)}")
    return TOKEN_WEIGHTS[name]


def aggregation_weights(
    length: jax.Array,
    counted: jax.Array,
    *,
    aggregation: Literal["sequence", "token", "constant"],
    average_over: Literal["all", "distilled"],
    constant: float = 1.0,
) -> jax.Array:
    """Returns float32[B]: what each token of completion i weighs in the loss.

    Both arrays are of the whole update, so that microbatches, chunks and devices add up to the
    same sum.

    Args:
        length: int32[B], tokens of each completion.
        counted: bool[B]. Tokens of the other completions weigh 0.
        aggregation: sequence: the mean over the tokens of a completion, then over completions
            (what the "token-mean" of the reference amounts to, with one sequence per microbatch).
            token: the mean over all tokens (DAPO, arXiv:2503.14476). constant: the sum of a
            completion divided by `constant`, whatever its length, then the mean over completions
            (Dr.GRPO, arXiv:2503.20783).
        average_over: "all" leaves completions that are not counted in the denominator.
        constant: The divisor of aggregation "constant".
    """
    within = counted if average_over == "distilled" else jnp.ones_like(counted)
    completions = jnp.maximum(jnp.sum(within), 1)
    if aggregation == "token":
        total = jnp.sum(jnp.where(within, length, 0))
        each = jnp.broadcast_to(1.0 / jnp.maximum(total, 1), length.shape)
    elif aggregation == "sequence":
        each = 1.0 / (jnp.maximum(length, 1) * completions)
    else:
        each = jnp.broadcast_to(1.0 / (constant * completions), length.shape)
    return jnp.where(counted, each, 0.0).astype(jnp.float32)
