"""Attention over rows of tokens and over a cache, and the rotary embedding of its inputs.

`attention` serves training, scoring and prefill. `cached_attention` serves decoding: one query per
row. Each has several implementations: plain einsums, cuDNN and splash.

Axes: B rows, S tokens, C cache slots, H heads, K KV heads, G = H / K, h head_dim.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import UserError
from sdjax.models.network import splash
from sdjax.models.network.model_config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)

Implementation = Literal["plain", "cudnn", "splash"]

# Which axis of a cache counts slots. cuDNN reads [B, C, K, h]. A matrix product reads [B, K, C, h]
# in place; on a CPU the other layout is transposed at every token and takes seven times as long.
SLOT_AXIS: dict[Implementation, int] = {"cudnn": 1, "plain": 2, "splash": 2}


def choose(requested: str, dtype: jnp.dtype, head_dim: int) -> Implementation:
    """Returns the implementation that runs: `requested`, or the backend's best one for "auto".

    Raises UserError for "cudnn" with a dtype or head_dim that cuDNN does not support.
    """
    # cuDNN's limits. A CPU has no compute capability; it may lower for a GPU.
    hopper = getattr(jax.devices()[0], "compute_capability", "9.0").startswith("9.")
    widest = 256 if hopper else 128
    fits_cudnn = dtype == jnp.bfloat16 and head_dim % 8 == 0 and head_dim <= widest
    match requested, jax.default_backend():
        case "cudnn", _:
            if not fits_cudnn:
                raise UserError(
                    f"model.attention is 'cudnn': {dtype} with head_dim {head_dim} is not for it, "
                    f"only bfloat16 with a multiple of 8 up to {widest}; say auto"
                )
            return "cudnn"
        case "splash", _:
            return "splash"
        case "auto", "tpu":
            return "splash"
        case "auto", "gpu" if fits_cudnn:
            return "cudnn"
    return "plain"


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Returns the precision of matrix products: float32 means float32, not a GPU's TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def product(equation: str, x: jax.Array, y: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """Returns the einsum of x and y in `dtype`, by default that of `x`; its sums are float32."""
    return jnp.einsum(equation, x, y, precision=precision(x.dtype), preferred_element_type=dtype)


def attention(
    q: jax.Array,  # [B, S, H, h]
    k: jax.Array,  # [B, S, K, h]
    v: jax.Array,  # [B, S, K, h]
    *,
    segment_ids: jax.Array | None,
    window: int | None,
    implementation: Implementation,
) -> jax.Array:
    """Returns [B, S, H, h]: each token attends to the tokens of its segment up to itself.

    Args:
        q, k, v: Queries, keys and values.
        segment_ids: int32[B, S]. Padding is segment 0 and attends to padding. None: each row is
            one segment, perhaps padded on the right; the output at padding has no meaning.
        window: How many tokens a query sees, itself included; None is all.
        implementation: What `choose` returned.
    """
    window = None if window is None or window >= q.shape[1] else window
    match implementation:
        case "plain":
            batch, tokens, heads, head_dim = q.shape
            mask = _row_mask(tokens, segment_ids, window)[:, None, None]
            grouped = q.reshape(batch, tokens, k.shape[2], heads // k.shape[2], head_dim)
            equations = ("bqkgh,bskh->bkgqs", "bkgqs,bskh->bqkgh")
            return _plain(grouped, k, v, mask, equations).reshape(q.shape)
        case "cudnn":
            return _cudnn(q, k, v, segment_ids, window)
        case "splash":
            return splash.attention(q, k, v, segment_ids, window)


def cached_attention(
    q: jax.Array,  # [B, 1, H, h]
    keys: jax.Array,  # [B, C, K, h] or [B, K, C, h]: see SLOT_AXIS
    values: jax.Array,  # the same
    length: jax.Array,
    *,
    window: int | None,
    implementation: Implementation,
) -> jax.Array:
    """Returns [B, 1, H, h]: row b's query attends to its slots before `length[b]`.

    Args:
        q: The query of each row's newest token.
        keys, values: The cache, which holds the newest token too.
        length: int32[B], at least 1: the filled slots of each row.
        window: How many of the last slots a query sees; None is all.
        implementation: What `choose` returned.
    """
    capacity = keys.shape[SLOT_AXIS[implementation]]
    window = None if window is None or window >= capacity else window
    if implementation == "cudnn":
        return _cudnn_cached(q, keys, values, length, window)
    slot = jnp.arange(capacity)[None]
    mask = slot < length[:, None]
    if window is not None:
        mask &= slot >= length[:, None] - window
    batch, _, heads, head_dim = q.shape
    grouped = q.reshape(batch, keys.shape[1], heads // keys.shape[1], head_dim)
    equations = ("bkgh,bkch->bkgc", "bkgc,bkch->bkgh")
    return _plain(grouped, keys, values, mask[:, None, None], equations).reshape(q.shape)


def _row_mask(tokens: int, segment_ids: jax.Array | None, window: int | None) -> jax.Array:
    """Returns bool[B or 1, S, S]: whether the query (the first S) sees the key."""
    index = jnp.arange(tokens)
    distance = index[:, None] - index[None]
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if segment_ids is None:
        return mask[None]
    return mask & (segment_ids[:, :, None] == segment_ids[:, None])


def _plain(
    grouped: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, equations: tuple[str, str]
) -> jax.Array:
    """Returns attention by two einsums, with softmax in float32.

    Args:
        grouped: Queries [B, ..., K, G, h], in the order of the first equation.
        k, v: Keys and values.
        mask: Broadcasts to the scores. It leaves every query at least one key.
        equations: The einsums of the scores and of the weighted values.
    """
    scores = product(equations[0], grouped, k, jnp.float32)
    scores = jnp.where(mask, scores * grouped.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return product(equations[1], weights, v)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, window: int | None
) -> jax.Array:
    """Returns cuDNN's flash attention. Rows of one segment, then padding, need no mask.

    Args:
        q, k, v: As in `attention`.
        segment_ids: As in `attention`.
        window: As in `attention`, but None if it is no shorter than the row.
    """
    local = None if window is None else (window - 1, 0)

    def one_segment(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
        )

    def packed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = _row_mask(q.shape[1], segment_ids, window)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")

    if segment_ids is None:
        return one_segment(q, k, v)
    before, after = segment_ids[:, :-1], segment_ids[:, 1:]
    single = jnp.all((before == after) | (after == 0))
    return jax.lax.cond(single, one_segment, packed, q, k, v)


def _cudnn_cached(
    q: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array, window: int | None
) -> jax.Array:
    """Returns cuDNN's attention over the filled slots.

    A window is cut out of the cache first, because cuDNN's own window needs a causal mask.

    Args:
        q, keys, values, length: As in `cached_attention`.
        window: As in `cached_attention`, but None if it is no shorter than the cache.
    """
    if window is not None:
        start = jnp.maximum(length - window, 0)
        cut = jax.vmap(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, window, axis=0))
        keys, values = cut(keys, start), cut(values, start)
        length = jnp.minimum(length, window)
    return jax.nn.dot_product_attention(
        q,
        keys,
        values,
        query_seq_lengths=jnp.ones_like(length),
        key_value_seq_lengths=length,
        implementation="cudnn",
    )


def rotary_tables(rope: Rope | None, head_dim: int, positions: jax.Array) -> tuple[jax.Array, ...]:
    """Returns cos and sin, float32[B, S, head_dim // 2], for int32[B, S] positions.

    With `rope.share` below 1 their last axis is that much shorter. If queries grow with their
    position, a third table float32[B, S, 1, 1] multiplies them.

    A layer without a rotary embedding gets cos 1 and sin 0, which turn nothing. So layers with and
    without one run the same program.
    """
    if rope is None:
        shape = (*positions.shape, head_dim // 2)
        return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    radians, factor = rotary_frequencies(rope, head_dim)
    angles = positions[..., None].astype(jnp.float32) * radians
    tables = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    if rope.query_growth is None:
        return tables
    turns = (positions // rope.query_growth.original_max_positions).astype(jnp.float32)
    return *tables, (1 + rope.query_growth.beta * jnp.log(1 + turns))[..., None, None]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns x [B, S, heads, head_dim] with dimensions i and i + n turned as a pair.

    n is the last axis of cos and sin, head_dim // 2 or less. Dimensions from 2 n on stay as they
    are.

    The rotary position embedding of arXiv:2104.09864. It computes in float32, because angles in
    bfloat16 cannot tell positions beyond 256 apart.
    """
    turned = 2 * cos.shape[-1]
    if turned < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :turned], cos, sin), x[..., turned:]], axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rotary_frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Returns the angle per position of each pair of dimensions, and the factor of cos and sin.

    The angles are radians, float32[n], for n pairs: head_dim // 2, or `rope.share` of them. The
    scalings are those of transformers.
    """
    dims = int(head_dim * rope.share)
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    powers = np.float32(rope.theta) ** exponents
    plain = np.float32(1.0) / powers
    match rope.scaling:
        case None:
            return plain, 1.0
        case LinearScaling(factor=factor):
            return plain / np.float32(factor), 1.0
        case Llama3Scaling():
            return _llama3_frequencies(plain, rope.scaling), 1.0
        case YarnScaling():
            return _yarn_frequencies(powers, rope), rope.scaling.attention_factor
        case LongRopeScaling() as s:
            divisors = np.asarray(s.long if s.use_long else s.short, np.float32)
            return np.float32(1.0) / (divisors * powers), s.attention_factor


def _llama3_frequencies(plain: np.ndarray, s: Llama3Scaling) -> np.ndarray:
    turns = np.float32(s.original_max_positions) / (np.float32(2 * math.pi) / plain)
    smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    stretched = plain / np.float32(s.factor)
    between = (1 - smooth) * stretched + smooth * plain
    out = np.where(turns < s.low_freq_factor, stretched, plain)
    middle = (turns >= s.low_freq_factor) & (turns <= s.high_freq_factor)
    return np.where(middle, between, out).astype(np.float32)


def _yarn_frequencies(powers: np.ndarray, rope: Rope) -> np.ndarray:
    s = rope.scaling
    assert isinstance(s, YarnScaling)
    dim = 2 * len(powers)

    def dimension(turns: float) -> float:
        """Returns the dimension that turns this often over the original context."""
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
