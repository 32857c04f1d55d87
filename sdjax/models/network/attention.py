"""Attention behind two functions, each with every implementation: plain, cuDNN, splash.

`attention` is for rows of tokens (training, scoring, prefill), `cached_attention` for one query a
row over a cache. Axes: B rows, S tokens, C cache slots, H heads, K KV heads, G = H / K, h head_dim.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.errors import UserError
from sdjax.models.network import splash

Implementation = Literal["plain", "cudnn", "splash"]


def choose(requested: str, dtype: jnp.dtype, head_dim: int) -> Implementation:
    """Returns which implementation runs: `requested`, or for "auto" the backend's best one."""
    fits_cudnn = dtype == jnp.bfloat16 and head_dim % 8 == 0 and head_dim <= 128
    match requested, jax.default_backend():
        case "cudnn", _:
            if not fits_cudnn:
                raise UserError(
                    f"model.attention is 'cudnn': {dtype} with head_dim {head_dim} is not for it, "
                    "only bfloat16 with a multiple of 8 up to 128; say auto"
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
    """Returns the matrix product precision: float32 means float32, not a GPU's TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def slot_axis(implementation: Implementation) -> int:
    """Returns which axis of a cache counts slots.

    1 for cuDNN, which reads [B, C, K, h]; else 2: a matrix product reads [B, K, C, h] as it lies,
    where a CPU would turn the other at every token (seven times as long, measured).
    """
    return 1 if implementation == "cudnn" else 2


def attention(
    q: jax.Array,  # [B, S, H, h]
    k: jax.Array,  # [B, S, K, h]
    v: jax.Array,  # [B, S, K, h]
    *,
    segment_ids: jax.Array | None,  # int32[B, S]
    window: int | None,
    implementation: Implementation,
) -> jax.Array:
    """Returns [B, S, H, h]: each token attends to those of its segment up to itself.

    `window` is how many of them, itself included. Padding (segment 0) attends to padding. None in
    place of segments: rows are one segment, perhaps padded on the right, where what comes out is
    without meaning.
    """
    window = None if window is None or window >= q.shape[1] else window
    match implementation:
        case "plain":
            return _plain(q, k, v, _row_mask(q.shape[1], segment_ids, window)[:, None, None])
        case "cudnn":
            return _cudnn(q, k, v, segment_ids, window)
        case "splash":
            return splash.attention(q, k, v, segment_ids, window)


def cached_attention(
    q: jax.Array,  # [B, 1, H, h]
    keys: jax.Array,  # [B, C, K, h] or [B, K, C, h], see slot_axis
    values: jax.Array,  # the same
    length: jax.Array,  # int32[B]
    *,
    window: int | None,
    implementation: Implementation,
) -> jax.Array:
    """Returns [B, 1, H, h]: row b's query attends to its slots before `length[b]` (at least 1),
    to the last `window` of them."""
    capacity = keys.shape[slot_axis(implementation)]
    window = None if window is None or window >= capacity else window
    if implementation == "cudnn":
        return _cudnn_cached(q, keys, values, length, window)
    slot = jnp.arange(capacity)[None]
    mask = slot < length[:, None]
    if window is not None:
        mask &= slot >= length[:, None] - window
    return _plain_cached(q, keys, values, mask[:, None, None])


def _row_mask(tokens: int, segment_ids: jax.Array | None, window: int | None) -> jax.Array:
    """Returns bool[B or 1, S, S]: whether the query (first S) sees the key."""
    index = jnp.arange(tokens)
    distance = index[:, None] - index[None]
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if segment_ids is None:
        return mask[None]
    return mask & (segment_ids[:, :, None] == segment_ids[:, None])


def _plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention by einsum; `mask` broadcasts to [B, K, G, queries, keys] and masks no whole row."""
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    exact = precision(q.dtype)
    scores = jnp.einsum(
        "bqkgh,bskh->bkgqs", grouped, k, precision=exact, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask, scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgqs,bskh->bqkgh", weights, v, precision=exact)
    return out.reshape(batch, queries, heads, head_dim)


def _plain_cached(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """The same of one query and a cache [B, K, C, h]; `mask` broadcasts to [B, K, G, C]."""
    batch, _, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    exact = precision(q.dtype)
    scores = jnp.einsum(
        "bkgh,bkch->bkgc", grouped, k, precision=exact, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask, scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgc,bkch->bkgh", weights, v, precision=exact)
    return out.reshape(batch, 1, heads, head_dim)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, window: int | None
) -> jax.Array:
    """cuDNN's flash attention: without a mask where every row is one segment, then padding."""
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
    """cuDNN over the filled slots. A window is cut out first: cuDNN's own needs a causal mask."""
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
