"""A decoding step on a GPU: the sublayers of a layer with kernels of ours between XLA's products.

For one token a row XLA and cuDNN run six kernels between the products of the attention, five of
them of some 2 us, and two for the MLP's gate and up, which read at half the memory's speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.models.network import attention, layer
from sdjax.models.network.layer import LayerWeights, in_parts, to_residual
from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel import rules


def fits(cfg: ModelConfig, implementation: attention.Implementation) -> bool:
    """Returns whether `attended` and `gated` can stand for layer's in a decoding step."""
    return (
        implementation == "cudnn"
        and importlib.util.find_spec("jax.experimental.pallas.triton") is not None  # deprecated
        and cfg.head_dim in (32, 64, 128)
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
    *,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the attention's output float32[B, 1, embed] and the cache with the row's new slot.

    Row b writes to slot `index[b]` and attends to its slots up to that one. Where the cache has no
    such slot it writes nothing, and its output is not the layer's: nobody samples from such a row.
    `interpret` runs the kernel, slowly, where there is no GPU.
    """
    from sdjax.models.network import decode_kernels

    whole = jnp.concatenate([m.reshape(m.shape[0], -1) for m in (w.q, w.k, w.v)], axis=1)
    parts = in_parts(x[:, 0], whole)
    parts = parts.reshape(*parts.shape[:2], -1, cfg.head_dim)
    attend = partial(decode_kernels.attend, eps=cfg.norm_eps, window=window, interpret=interpret)
    row, none = rules.spec(("batch",)), rules.spec(())
    specs = rules.spec((None, "batch")), none, row, row, row, row
    turns = rope[0][:, 0], rope[1][:, 0]
    out, keys, values = _of_shards(attend, specs, (row, row, row))(
        parts, (w.q_norm, w.k_norm), turns, *cache, index
    )
    return to_residual("bsnh,nhd->bsd", out[:, None], w.o, w.o_bias), (keys, values)


def gated(x: jax.Array, w: LayerWeights, *, interpret: bool = False) -> jax.Array:
    """Returns the MLP's inner activations [B, 1, mlp] of x [B, 1, embed], as layer.gated."""
    from sdjax.models.network import decode_kernels

    rows = x.shape[0] * x.shape[1] // rules.shards(*rules.BATCH)
    if not decode_kernels.fits_gate_up(rows, *w.gate.shape):
        return layer.gated(x, w)
    gate_up = partial(decode_kernels.gate_up, interpret=interpret)
    row, none = rules.spec(("batch",)), rules.spec(())
    return _of_shards(gate_up, (row, none, none), row)(x[:, 0], w.gate, w.up)[:, None]


def _of_shards(f: Callable, in_specs: tuple, out_specs: Any) -> Callable:
    """Returns `f` of each shard's rows, for a kernel that XLA cannot cut."""
    if jax.sharding.get_abstract_mesh().empty:
        return f
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)
