"""Computes group-relative policy gradients: advantages on the host, token losses on the device.

The papers' names for settings (advantage, clip, ratio in `Policy`; aggregation in `Loss`):

    GRPO as arXiv:2603.24472 ran it   mean, 0.2 / 0.28, dual clip 3, token, sequence
    GRPO (arXiv:2402.03300)           mean_std, 0.2 / 0.2, token, sequence; its KL term is not here
    Dr.GRPO (arXiv:2503.20783)        mean, 0.2 / 0.2, token, constant
    DAPO (arXiv:2503.14476)           mean_std, 0.2 / 0.28, token, token, overlong_buffer,
                                      rollout.dynamic_sampling_rounds
    GSPO (arXiv:2507.18071)           mean_std, 3e-4 / 4e-4, sequence, sequence

All but the first also need policy.dual_clip None and loss.sampler_clip None.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import Policy

LOG_RATIO_BOUND = 20.0


def advantages(rewards: np.ndarray, group: np.ndarray, cfg: Policy) -> np.ndarray:
    """Returns float32[B]: each reward minus the mean of its group; exactly 0 for equal rewards.

    `rewards` is float[B], `group` int[B]. With cfg.advantage "mean_std" the difference is divided
    by the unbiased standard deviation of the group + 1e-6. A completion alone in its group keeps
    its reward, as in the reference.
    """
    rewards = np.asarray(rewards, np.float64)
    out = rewards.copy()
    for g in np.unique(group):
        member = group == g
        if np.count_nonzero(member) < 2:
            continue
        # From the first reward, because the mean of equal numbers may differ from them by rounding.
        difference = rewards[member] - rewards[member][0]
        out[member] = difference - difference.mean()
        if cfg.advantage == "mean_std":
            out[member] /= rewards[member].std(ddof=1) + 1e-6
    return out.astype(np.float32)


def overlong_shaped(
    rewards: np.ndarray, length: np.ndarray, longest: int, cfg: Policy
) -> np.ndarray:
    """Returns float32[B]: rewards minus a penalty for completions near the length limit.

    A completion may have `longest` tokens. Over the last cfg.overlong_buffer of them the penalty
    grows from 0 to cfg.overlong_penalty (arXiv:2503.14476 eq. 13). With a buffer of 0 rewards stay
    as they are.
    """
    rewards = np.asarray(rewards, np.float32)
    if cfg.overlong_buffer == 0:
        return rewards
    into = (np.asarray(length) - (longest - cfg.overlong_buffer)) / cfg.overlong_buffer
    return (rewards - cfg.overlong_penalty * np.clip(into, 0.0, 1.0)).astype(np.float32)


def token_log_ratio(logprobs: jax.Array, old_logprobs: jax.Array) -> jax.Array:
    """Returns log(new / old) of each token's probability, clipped to +-20."""
    return jnp.clip(logprobs - old_logprobs, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def sequence_log_ratio(
    logprobs: jax.Array, old_logprobs: jax.Array, sample: jax.Array, num_samples: int
) -> jax.Array:
    """Returns at every token the mean of log(new / old) over its completion (GSPO).

    `sample` int32[...] is the token's completion, in [0, num_samples); any other value is padding.
    The gradient at a token is that of its log-probability alone. A mean over the tokens of a
    completion then has the gradient of the mean log ratio (arXiv:2507.18071 section 4.3).
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

    With r = exp(log_ratio) and the advantage A it is
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
    """Returns two arrays bool[...]: where the clip, and the dual clip, removes the gradient."""
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
    """Returns log(new / old) at every token, by token or by sequence as cfg.ratio says.

    Args:
        logprobs: float32[...], the current log-probabilities.
        old_logprobs: float32[...], those before the first update of the step.
        cfg: With cfg.ratio "sequence" the arrays must hold all tokens of a completion, because it
            takes means over completions.
        sample: int32[...], as in sequence_log_ratio.
        num_samples: As in sequence_log_ratio.
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
    """Returns the clipped loss at every token, before weights and aggregation.

    Args:
        logprobs: float32[...], the current log-probabilities.
        old_logprobs: float32[...], those before the first update of the step.
        advantage: float32[...], of the token's completion.
        cfg: The ratio and the clips.
        sample: int32[...], as in sequence_log_ratio.
        num_samples: As in sequence_log_ratio.
    """
    ratio = log_ratio(logprobs, old_logprobs, cfg, sample=sample, num_samples=num_samples)
    return clipped_loss(ratio, advantage, cfg)


def importance_ratio(logprobs: jax.Array, old_logprobs: jax.Array, upper: float) -> jax.Array:
    """Returns min(new / old, upper) at every token, without gradient."""
    ratio = jnp.exp(token_log_ratio(logprobs, old_logprobs))
    return jax.lax.stop_gradient(jnp.minimum(ratio, upper))
