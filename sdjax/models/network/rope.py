"""Rotary position embedding (arXiv:2104.09864) and its scalings, as transformers defines them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.models.network.model_config import LinearScaling, Llama3Scaling, Rope, YarnScaling


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Returns radians a position for each pair of dimensions, float32[head_dim // 2], and the
    factor of cos and sin."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.float32(rope.theta) ** exponents
    plain = np.float32(1.0) / powers
    match rope.scaling:
        case None:
            return plain, 1.0
        case LinearScaling(factor=factor):
            return plain / np.float32(factor), 1.0
        case Llama3Scaling():
            return _llama3(plain, rope.scaling), 1.0
        case YarnScaling():
            return _yarn(powers, rope), rope.scaling.attention_factor


def _llama3(plain: np.ndarray, s: Llama3Scaling) -> np.ndarray:
    turns = np.float32(s.original_max_positions) / (np.float32(2 * math.pi) / plain)
    smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    stretched = plain / np.float32(s.factor)
    between = (1 - smooth) * stretched + smooth * plain
    out = np.where(turns < s.low_freq_factor, stretched, plain)
    middle = (turns >= s.low_freq_factor) & (turns <= s.high_freq_factor)
    return np.where(middle, between, out).astype(np.float32)


def _yarn(powers: np.ndarray, rope: Rope) -> np.ndarray:
    s = rope.scaling
    assert isinstance(s, YarnScaling)
    dim = 2 * len(powers)

    def dimension(turns: float) -> float:
        """Returns which dimension turns this often over the original context."""
        wavelength = s.original_max_positions / (turns * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(len(powers), dtype=np.float32) - low) / (high - low), 0, 1)
    stretched = np.float32(1.0) / (np.float32(s.factor) * powers)
    return (stretched * ramp + (1 / powers) * (1 - ramp)).astype(np.float32)


def tables(rope: Rope, head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin, float32[B, S, head_dim // 2], for int32[B, S] positions."""
    radians, factor = frequencies(rope, head_dim)
    angles = positions[..., None].astype(jnp.float32) * radians
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns [B, S, heads, head_dim] with dimension i and i + head_dim // 2 turned as a pair.

    Computed in float32: bfloat16 angles lose the positions beyond 256.
    """
    cos, sin = cos[:, :, None], sin[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
