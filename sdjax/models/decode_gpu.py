"""Attention of a decoding step on a GPU, with one kernel (Pallas, Triton) between its products.

For one token a row XLA runs five kernels there of some 2 us each: norms of queries and of keys, the
rotation, and two writes to the cache.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.models import attention
from sdjax.models.config import ModelConfig
from sdjax.models.layer import LayerWeights, in_parts, to_residual
from sdjax.parallel import rules


def fits(cfg: ModelConfig, implementation: attention.Implementation) -> bool:
    """Returns whether `attended` can stand for layer.attended in a decoding step."""
    return (
        implementation == "cudnn"
        and importlib.util.find_spec("jax.experimental.pallas.triton") is not None  # deprecated
        and cfg.qk_norm != "full"
        and not cfg.qkv_bias
        and rules.shards("tensor") == 1
    )


def attended(
    x: jax.Array,  # [B, 1, embed]
    w: LayerWeights,
    rope: tuple[jax.Array, jax.Array],  # float32[B, 1, h // 2] each
    cfg: ModelConfig,
    cache: tuple[jax.Array, jax.Array],  # keys and values, [B, C, K, h]
    index: jax.Array,  # int32[B]
    window: int | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the attention's output float32[B, 1, embed] and the cache with the row's new slot.

    Row b writes to slot `index[b]` and attends to its slots up to that one; where the cache has no
    such slot it writes nothing.
    """
    whole = jnp.concatenate([m.reshape(m.shape[0], -1) for m in (w.q, w.k, w.v)], axis=1)
    parts = in_parts(x[:, 0], whole)
    turns = rope[0][:, 0], rope[1][:, 0]
    q, keys, values = turn_and_write(parts, (w.q_norm, w.k_norm), turns, *cache, index, cfg=cfg)
    out = attention.cached_attention(
        q[:, None], keys, values, index + 1, window=window, implementation="cudnn"
    )
    return to_residual("bsnh,nhd->bsd", out, w.o, w.o_bias), (keys, values)


def turn_and_write(
    parts: jax.Array,  # float32[S, B, (H + 2 K) h]: their sum is queries, keys and values
    norms: tuple[jax.Array | None, jax.Array | None],  # of queries and of keys, [h]
    rope: tuple[jax.Array, jax.Array],  # float32[B, h // 2] each
    keys: jax.Array,  # [B, C, K, h]
    values: jax.Array,  # [B, C, K, h]
    index: jax.Array,  # int32[B]
    *,
    cfg: ModelConfig,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the turned queries [B, H, h], and the cache with row b's key and value at index[b].

    A row whose index lies beyond the cache writes nothing. `interpret` runs the kernel, slowly,
    where there is no GPU.
    """
    local = partial(_local, cfg=cfg, interpret=interpret)
    if jax.sharding.get_abstract_mesh().empty:
        return local(parts, norms, rope, keys, values, index)
    row, whole = rules.spec(("batch",)), rules.spec(())
    return jax.shard_map(
        local,
        in_specs=(rules.spec((None, "batch")), whole, row, row, row, row),
        out_specs=(row, row, row),
        check_vma=False,
    )(parts, norms, rope, keys, values, index)


def _local(
    parts: jax.Array,
    norms: tuple[jax.Array | None, jax.Array | None],
    rope: tuple[jax.Array, jax.Array],
    keys: jax.Array,
    values: jax.Array,
    index: jax.Array,
    *,
    cfg: ModelConfig,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One program a row and head, on one shard of the batch."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    _, rows, width = parts.shape
    kv_heads, h = keys.shape[2:]
    heads = width // h - 2 * kv_heads
    eps = None if norms[0] is None else cfg.norm_eps
    scales = norms if eps is not None else (jnp.ones(h, keys.dtype),) * 2  # read by nothing
    return pl.pallas_call(
        partial(_kernel, eps=eps),
        grid=(rows, heads + 2 * kv_heads),
        out_shape=(
            jax.ShapeDtypeStruct((rows, heads, h), keys.dtype),
            jax.ShapeDtypeStruct(keys.shape, keys.dtype),
            jax.ShapeDtypeStruct(values.shape, values.dtype),
        ),
        input_output_aliases={6: 1, 7: 2},
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="turn_and_write",
    )(parts, *scales, *rope, index, keys, values)


def _kernel(
    parts: Any,
    q_norm: Any,
    k_norm: Any,
    cos: Any,
    sin: Any,
    index: Any,
    _keys_before: Any,  # the same memory as keys
    _values_before: Any,
    queries: Any,
    keys: Any,
    values: Any,
    *,
    eps: float | None,
) -> None:
    """Of one row and one head of queries, keys or values. `eps` None: without norms."""
    from jax.experimental import pallas as pl

    row, head = pl.program_id(0), pl.program_id(1)
    slots, kv_heads, h = keys.shape[1:]
    heads, half = queries.shape[1], h // 2
    first, second = pl.ds(0, half), pl.ds(half, half)
    slot = index[row]

    def pair() -> tuple[jax.Array, jax.Array]:
        """Returns the head's two halves, which the rotation turns into each other."""
        low, high = pl.ds(head * h, half), pl.ds(head * h + half, half)
        a = b = jnp.zeros(half, jnp.float32)
        for piece in map(jnp.int32, range(parts.shape[0])):
            a, b = a + parts[piece, row, low], b + parts[piece, row, high]
        return a, b

    def turned(norm: Any) -> tuple[jax.Array, jax.Array]:
        a, b = pair()
        if eps is not None:
            inverse = jax.lax.rsqrt((jnp.sum(a * a) + jnp.sum(b * b)) / h + eps)
            a = a * inverse * norm[first].astype(jnp.float32)
            b = b * inverse * norm[second].astype(jnp.float32)
        c, s = cos[row, :], sin[row, :]
        return a * c - b * s, b * c + a * s

    def put(ref: Any, at: tuple[jax.Array, ...], new: tuple[jax.Array, jax.Array]) -> None:
        for where, x in zip((first, second), new, strict=True):
            ref[(*at, where)] = x.astype(ref.dtype)

    key, value = head - heads, head - heads - kv_heads

    @pl.when(head < heads)
    def _() -> None:
        put(queries, (row, head), turned(q_norm))

    @pl.when((key >= 0) & (key < kv_heads) & (slot < slots))
    def _() -> None:
        put(keys, (row, slot, key), turned(k_norm))

    @pl.when((value >= 0) & (slot < slots))
    def _() -> None:
        put(values, (row, slot, value), pair())
