"""Group-relative policy gradients: advantages on the host, per-token losses on the device.

What the papers call these settings (advantage, clip, ratio in `Policy`; aggregation in `Loss`):

    GRPO as arXiv:2603.24472 ran it   mean, 0.2 / 0.28, dual clip 3, token, sequence
    GRPO (arXiv:2402.03300)           mean_std, 0.2 / 0.2, token, sequence
    Dr.GRPO (arXiv:2503.20783)        mean, 0.2 / 0.2, token, constant
    DAPO (arXiv:2503.14476)           mean_std, 0.2 / 0.28, token, token, overlong_buffer,
                                      rollout.dynamic_sampling_rounds
    GSPO (arXiv:2507.18071)           mean_std, 3e-4 / 4e-4, sequence, sequence
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import Policy

LOG_RATIO_BOUND = 20.0


def advantages(rewards: np.ndarray, group: np.ndarray, cfg: Policy) -> np.ndarray:
    """Returns float32[B]: each reward minus the mean of its group.

    `group` is int[B]. With cfg.advantage "mean_std" the difference is divided by the group's
    unbiased standard deviation + 1e-6. A completion alone in its group keeps its reward, as in
    the reference.
    """
    rewards = np.asarray(rewards, np.float64)
    out = rewards.copy()
    for g in np.unique(group):
        member = group == g
        if np.count_nonzero(member) < 2:
            continue
        out[member] = rewards[member] - rewards[member].mean()
        if cfg.advantage == "mean_std":
            out[member] /= rewards[member].std(ddof=1) + 1e-6
    return out.astype(np.float32)


def overlong_shaped(
    rewards: np.ndarray, length: np.ndarray, longest: int, cfg: Policy
) -> np.ndarray:
    """Returns float32[B]: rewards less a penalty in the last tokens before the limit.

    It grows from 0 to cfg.overlong_penalty over the last cfg.overlong_buffer of the `longest`
    tokens a completion may have (arXiv:2503.14476 eq. 13); a buffer of 0 leaves rewards alone.
    """
    rewards = np.asarray(rewards, np.float32)
    if cfg.overlong_buffer == 0:
        return rewards
    into = (np.asarray(length) - (longest - cfg.overlong_buffer)) / cfg.overlong_buffer
    return (rewards - cfg.overlong_penalty * np.clip(into, 0.0, 1.0)).astype(np.float32)


def token_log_ratio(logprobs: jax.Array, old_logprobs: jax.Array) -> jax.Array:
    """Returns log(new / old) of each token, clipped to +-20."""
    return jnp.clip(logprobs - old_logprobs, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def sequence_log_ratio(
    logprobs: jax.Array, old_logprobs: jax.Array, sample: jax.Array, num_samples: int
) -> jax.Array:
    """Returns at every token the mean of log(new / old) over its completion (GSPO).

    `sample` int32[...] is the token's completion, in [0, num_samples); anything else is padding.
    Each token passes on the gradient of its own log-probability, with which a mean over the
    completion's tokens has the gradient of the mean log ratio (arXiv:2507.18071 section 4.3).
    """
    real = (sample >= 0) & (sample < num_samples)
    of = jnp.where(real, sample, num_samples).ravel()
    log_ratio = jnp.where(real, token_log_ratio(logprobs, old_logprobs), 0.0).ravel()
    total = jax.ops.segment_sum(log_ratio, of, num_samples + 1)
    count = jax.ops.segment_sum(real.astype(jnp.float32).ravel(), of, num_samples + 1)
    mean = (total / jnp.maximum(count, 1.0))[of].reshape(sample.shape)
    return jax.lax.stop_gradient(mean - logprobs) + logprobs


def clipped_loss(log_ratio: jax.Array, advantage: jax.Array, cfg: Policy) -> jax.Array:
    """Returns the loss at every token, before weights and aggregation.

    max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), and where A < 0 at most -A dual_clip.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)
    loss = jnp.maximum(-advantage * ratio, -advantage * clipped)
    if cfg.dual_clip is not None:
        loss = jnp.where(advantage < 0, jnp.minimum(loss, -advantage * cfg.dual_clip), loss)
    return loss


def was_clipped(
    log_ratio: jax.Array, advantage: jax.Array, cfg: Policy
) -> tuple[jax.Array, jax.Array]:
    """Returns bool[...] twice: where the clip and where the dual clip took the gradient away."""
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)
    by_clip = -advantage * clipped > -advantage * ratio
    if cfg.dual_clip is None:
        return by_clip, jnp.zeros_like(by_clip)
    over = jnp.maximum(ratio, clipped) > cfg.dual_clip
    return by_clip, over & (advantage < 0)


def log_ratio(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    cfg: Policy,
    *,
    sample: jax.Array,
    num_samples: int,
) -> jax.Array:
    """Returns log(new / old) at every token, as cfg.ratio has it; all arrays have one shape.

    cfg.ratio "sequence" takes means over completions, so all tokens of a completion must be
    here; `sample` and `num_samples` are sequence_log_ratio's.
    """
    if cfg.ratio == "sequence":
        return sequence_log_ratio(logprobs, old_logprobs, sample, num_samples)
    return token_log_ratio(logprobs, old_logprobs)


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantage: jax.Array,
    cfg: Policy,
    *,
    sample: jax.Array,
    num_samples: int,
) -> jax.Array:
    """Returns the clipped loss at every token; all arrays have one shape, as in log_ratio."""
    ratio = log_ratio(logprobs, old_logprobs, cfg, sample=sample, num_samples=num_samples)
    return clipped_loss(ratio, advantage, cfg)


def importance_ratio(logprobs: jax.Array, old_logprobs: jax.Array, upper: float) -> jax.Array:
    """Returns min(new / old, upper) at every token, without gradient."""
    ratio = jnp.exp(token_log_ratio(logprobs, old_logprobs))
    return jax.lax.stop_gradient(jnp.minimum(ratio, upper))
