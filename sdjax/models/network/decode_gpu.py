"""The parts of a decoding step that run our kernels on a GPU, between XLA's matrix products.

For one token per row, XLA and cuDNN run six kernels between the products of the attention; five of
them take about 2 us each. They run two for the MLP's gate and up, which reach half of the memory's
bandwidth. `decode_kernels` has one kernel for each of the two jobs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.models.network import layer
from sdjax.models.network.layer import LayerWeights, in_parts, sublayer_input, to_residual
from sdjax.models.network.model_config import ModelConfig, Rope
from sdjax.parallel import rules


def fits(cfg: ModelConfig) -> bool:
    """Returns whether `attend` can do the attention of this model's decoding step.

    The caller asks where "cudnn" is the implementation: on a GPU, in bfloat16, with a cache
    [B, C, K, h]. `dense_mlp` may run with it: it takes any sizes, and falls back on the layer's.
    """
    return (
        # Pallas has deprecated its Triton backend, so a later version may not have it.
        importlib.util.find_spec("jax.experimental.pallas.triton") is not None
        and cfg.head_dim in (32, 64, 128)  # Triton's tiles have sizes that are powers of two
        and cfg.qk_norm != "full"  # a block of the kernel sees one KV head, not all
        and not cfg.qkv_bias  # the kernel adds no bias
        and all(_turns_alike(kind.rope) for kind in cfg.layers)
        and not cfg.norm_offset  # nor anything to the scale of a norm
        and rules.shards("tensor") == 1  # the kernel takes all heads
    )


def _turns_alike(rope: Rope | None) -> bool:
    """Returns whether a rotary embedding turns queries as keys, and whole heads."""
    return rope is None or (rope.query_growth is None and rope.share == 1)


def attend(
    x: jax.Array,
    w: LayerWeights,
    rope: tuple[jax.Array, ...],
    cfg: ModelConfig,
    cache: tuple[jax.Array, jax.Array, jax.Array],
    window: int | None,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the attention's output [B, 1, H, h], and the cache's keys and values.

    Row b writes to slot `index[b]` and attends to its slots up to that one. If the cache has no
    such slot, it writes nothing and its output has no meaning; nobody samples from such a row.

    Args:
        x: The layer's input float32[B, 1, embed].
        w: The layer's weights.
        rope: cos and sin, float32[B, 1, h // 2] each.
        cfg: The model's sizes.
        cache: Keys and values [B, C, K, h], and the index int32[B].
        window: How many of the last tokens a query sees; None is all.
        interpret: Runs the kernel where there is no GPU, slowly.
    """
    from sdjax.models.network import decode_kernels

    *slots, index = cache
    x = sublayer_input(x, w.attention_norm, w, cfg)
    whole = jnp.concatenate([m.reshape(m.shape[0], -1) for m in (w.q, w.k, w.v)], axis=1)
    parts = in_parts(x[:, 0], whole)
    parts = parts.reshape(*parts.shape[:2], -1, cfg.head_dim)
    kernel = partial(
        decode_kernels.attend,
        eps=cfg.norm_eps,
        window=window,
        query_factor=cfg.query_factor,
        interpret=interpret,
    )
    row, none = rules.spec(("batch",)), rules.spec(())
    specs = rules.spec((None, "batch")), none, row, row, row
    out, keys, values = _of_shards(kernel, specs, (row, row, row))(
        parts, (w.q_norm, w.k_norm), (rope[0][:, 0], rope[1][:, 0]), tuple(slots), index
    )
    return out[:, None], keys, values


def dense_mlp(x: jax.Array, w: LayerWeights, cfg: ModelConfig) -> jax.Array:
    """Returns float32[B, 1, embed] for inputs x [B, 1, embed], as layer.dense_mlp does."""
    return to_residual("bsf,fd->bsd", gated(x, w, cfg.activation), w.down, None)


def gated(
    x: jax.Array, w: LayerWeights, activation: str = "silu", *, interpret: bool = False
) -> jax.Array:
    """Returns the MLP's inner activations [B, 1, mlp] of x [B, 1, embed], as layer.gated does.

    Sizes and activations that do not fit the kernel run layer.gated.
    """
    from sdjax.models.network import decode_kernels

    rows = x.shape[0] * x.shape[1] // rules.shards(*rules.BATCH)
    if activation != "silu" or not decode_kernels.fits_gate_up(rows, *w.gate.shape):
        return layer.gated(x, w, activation)
    gate_up = partial(decode_kernels.gate_up, interpret=interpret)
    row, none = rules.spec(("batch",)), rules.spec(())
    return _of_shards(gate_up, (row, none, none), row)(x[:, 0], w.gate, w.up)[:, None]


def _of_shards(f: Callable, in_specs: tuple, out_specs: Any) -> Callable:
    """Returns `f` applied to each shard's rows, because XLA cannot split a kernel."""
    if jax.sharding.get_abstract_mesh().empty:
        return f
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)
