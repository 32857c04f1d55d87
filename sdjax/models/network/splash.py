"""Splash attention: JAX's Pallas kernel for TPUs, over rows of packed segments.

Under a mesh the kernel runs in a shard_map, because the partitioner cannot split it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from sdjax.parallel import rules

# Tokens per tile. Rows are padded to a multiple of the smallest, which is the TPU's lane count.
BLOCKS = (512, 256, 128)


def attention(
    q: jax.Array,  # [B, S, H, h]
    k: jax.Array,  # [B, S, K, h]
    v: jax.Array,  # [B, S, K, h]
    segment_ids: jax.Array | None,
    window: int | None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Returns [B, S, H, h]: causal attention within segments, over at most `window` tokens.

    Args:
        q, k, v: Queries, keys and values.
        segment_ids: int32[B, S]. None: every row is one segment.
        window: How many tokens a query sees, itself included; None is all.
        interpret: Runs the kernel without a TPU, slowly.
    """
    local = partial(_local, window=window, interpret=interpret)
    if jax.sharding.get_abstract_mesh().empty:
        return local(q, k, v, segment_ids)
    heads = rules.spec(("batch", None, "heads", "head_dim"))
    kv_heads = rules.spec(("batch", None, "kv_heads", "head_dim"))
    return jax.shard_map(
        local,
        in_specs=(heads, kv_heads, kv_heads, rules.spec(("batch", None))),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, segment_ids)


def _local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    tokens, head_dim = q.shape[1], q.shape[3]
    more = -tokens % BLOCKS[-1]
    q, k, v = (_pad(x, more).swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v))
    kernel = _kernel(q.shape[1], tokens + more, window, interpret)
    segments = None if segment_ids is None else _segments(_pad(segment_ids, more))
    out = jax.vmap(kernel)(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :tokens]


def _pad(x: jax.Array, more: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))


def _kernel(heads: int, tokens: int, window: int | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (tokens, tokens)
    mask = (
        splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    )
    block = next(b for b in BLOCKS if tokens % b == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
    )


def _segments(ids: jax.Array):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return SegmentIds(q=ids, kv=ids)
