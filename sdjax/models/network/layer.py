"""One transformer layer: the same function for training rows, prefill and decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from sdjax.models.network.attention import precision
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.rope import rotate
from sdjax.parallel.rules import BATCH, HIDDEN, Axes, constrain, shards

Kept = TypeVar("Kept")
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]]
"""Rotated queries, keys and values to the attention's output in the shape of the queries."""
Attention = Callable[[jax.Array], tuple[jax.Array, Kept]]
"""Inputs [B, S, embed] to the whole sublayer's output float32[B, S, embed]."""
Gated = Callable[[jax.Array, "LayerWeights"], jax.Array]
"""Inputs [B, S, embed] and weights to the MLP's inner activations [B, S, mlp]."""

# How many trailing dimensions of an array are a linear layer's outputs; others are none's.
OUTPUTS = {"q": 2, "k": 2, "v": 2, "o": 1, "gate": 1, "up": 1, "down": 1, "head": 1}

QUERY = ("batch", None, "heads", "head_dim")
KEY = ("batch", None, "kv_heads", "head_dim")
INNER = ("batch", None, "mlp")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights of one layer; of all layers where every array has a leading axis of layers."""

    q: jax.Array  # [embed, heads, head_dim]
    k: jax.Array  # [embed, kv_heads, head_dim]
    v: jax.Array  # [embed, kv_heads, head_dim]
    o: jax.Array  # [heads, head_dim, embed]
    gate: jax.Array  # [embed, mlp]
    up: jax.Array  # [embed, mlp]
    down: jax.Array  # [mlp, embed]
    attention_norm: jax.Array  # [embed]
    mlp_norm: jax.Array  # [embed]
    q_norm: jax.Array | None = None  # [head_dim], or [heads, head_dim] over all heads
    k_norm: jax.Array | None = None  # [head_dim], or [kv_heads, head_dim]
    q_bias: jax.Array | None = None  # [heads, head_dim]
    k_bias: jax.Array | None = None  # [kv_heads, head_dim]
    v_bias: jax.Array | None = None  # [kv_heads, head_dim]
    o_bias: jax.Array | None = None  # [embed]


def cast(weights: LayerWeights, dtype: jnp.dtype) -> LayerWeights:
    """Returns the weights in the compute dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), weights)


def rms_norm(x: jax.Array, scale: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Returns `x` over its root mean square, taken over the axes that `scale` has, times `scale`.

    In the dtype of `scale`, float32 inside; `cfg.norm_cast` says which side of the product the
    cast back stands on.
    """
    axes = tuple(range(-scale.ndim, 0))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axes, keepdims=True) + cfg.norm_eps)
    if cfg.norm_cast == "before":
        return wide.astype(scale.dtype) * scale
    return (wide * scale.astype(jnp.float32)).astype(scale.dtype)


def gated(x: jax.Array, w: LayerWeights) -> jax.Array:
    """Returns the MLP's inner activations [B, S, mlp] of x [B, S, embed]: silu(gate) times up."""
    gate = _by_columns(_project("bsd,df->bsf", x, w.gate, None), INNER, w).astype(jnp.float32)
    up = _by_columns(_project("bsd,df->bsf", x, w.up, None), INNER, w)
    return (jax.nn.silu(gate) * up).astype(x.dtype)


def block(
    x: jax.Array,  # float32[B, S, embed]
    weights: LayerWeights,
    cfg: ModelConfig,
    attention: Attention[Kept],
    gated: Gated = gated,
) -> tuple[jax.Array, Kept]:
    """Returns the layer's output float32[B, S, embed] and what `attention` keeps.

    The residual stream is float32 and everything else in the weights' dtype: rounded to bfloat16
    at each sum, the stream is where a sampler and a trainer that compute the same in another
    order would part.

    How rows of tokens and a cache differ is the business of `attention` alone; `gated` computes the
    same everywhere.
    """
    pre = cfg.norm_placement == "pre"
    dtype = weights.q.dtype
    inner = rms_norm(x, weights.attention_norm, cfg) if pre else x.astype(dtype)
    inner, kept = attention(inner)
    x = x + (inner if pre else rms_norm(inner, weights.attention_norm, cfg))
    inner = rms_norm(x, weights.mlp_norm, cfg) if pre else x.astype(dtype)
    inner = to_residual("bsf,fd->bsd", gated(inner, weights), weights.down, None)
    x = x + (inner if pre else rms_norm(inner, weights.mlp_norm, cfg))
    return constrain(x, HIDDEN), kept


def attended(
    x: jax.Array,  # [B, S, embed]
    w: LayerWeights,
    rope: tuple[jax.Array, jax.Array],  # cos and sin, float32[B, S, head_dim // 2]
    cfg: ModelConfig,
    attend: Attend[Kept],
) -> tuple[jax.Array, Kept]:
    """Returns the attention sublayer's output float32[B, S, embed] and what `attend` keeps."""
    q = _by_columns(_project("bsd,dnh->bsnh", x, w.q, w.q_bias, jnp.float32), QUERY, w)
    k = _by_columns(_project("bsd,dnh->bsnh", x, w.k, w.k_bias, jnp.float32), KEY, w)
    # In float32 as well, or XLA would not make one product of the three.
    v = _by_columns(_project("bsd,dnh->bsnh", x, w.v, w.v_bias, jnp.float32), KEY, w)
    v = v.astype(x.dtype)
    if w.q_norm is not None and w.k_norm is not None:
        q = rms_norm(q, w.q_norm.astype(q.dtype), cfg)
        k = rms_norm(k, w.k_norm.astype(k.dtype), cfg)
    q, k = rotate(q, *rope).astype(v.dtype), rotate(k, *rope).astype(v.dtype)
    out, kept = attend(constrain(q, QUERY), constrain(k, KEY), constrain(v, KEY))
    return to_residual("bsnh,nhd->bsd", out, w.o, w.o_bias), kept


def to_residual(equation: str, x: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns float32[B, S, embed], the product of x [B, S, ...] that is added to the residual."""
    step_of_gpu = jax.default_backend() == "gpu" and x.shape[1] == 1 and shards("tensor") == 1
    if not step_of_gpu or x.dtype == jnp.float32:
        return _apart(_project(equation, x, w, bias, jnp.float32))
    out = in_parts(x.reshape(x.shape[0], -1), w.reshape(-1, w.shape[-1])).sum(0)[:, None]
    return out if bias is None else out + bias


def in_parts(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns float32[S, B, N] whose sum over S is the product of x [B, K] and w [K, N].

    A product of few rows is cut along K until its tiles keep a device's processors reading. XLA
    cuts it too, but adds the parts up in a kernel of its own; these are added where they are used.
    On an H200 Qwen3-1.7B decodes 64 rows 3 % faster for it, and 256 rows 6 % slower.
    """
    rows, inner = x.shape
    parts = 1
    if rows // shards(*BATCH) <= 64:
        while parts * w.shape[1] < 64 * 256 and inner % (2 * parts) == 0 and inner // parts > 256:
            parts *= 2
    return _apart(
        jnp.einsum(
            "bsk,skn->sbn",
            x.reshape(rows, parts, -1),
            w.reshape(parts, -1, w.shape[1]),
            precision=precision(x.dtype),
            preferred_element_type=jnp.float32,
        )
    )


def _apart(product: jax.Array) -> jax.Array:
    """Returns it; on a GPU as one that XLA does not add to anything inside the matrix product.

    cuBLASLt (13, H100) has a kernel that adds a product to a float32 matrix and now and then, once
    in some 20,000 launches, ends the process with "unspecified launch failure": its blocks signal
    others of their cluster that have already left (nvjet_sm90_tss_192x64_64x6_1x4_h_bx_NNT, in a
    core dump of the device). The sum is as cheap beside the next norm.
    """
    return jax.lax.optimization_barrier(product) if jax.default_backend() == "gpu" else product


def _by_columns(product: jax.Array, axes: Axes, w: LayerWeights) -> jax.Array:
    """Returns it [B, S, ...], pinned to be split by its columns over tensor where rows are short.

    Hidden states are split by tokens: either they are gathered over tensor or the matrix is, whose
    whole gradients are summed over tensor then. Left to itself the compiler gathers matrices of an
    MLP for fewer tokens than it should. A layer's MLP moves some 6 bytes an entry of embed for
    each of its columns, or for each token: gathered in bfloat16, the sum scattered in float32. Of
    more tokens a shard than columns the choice is the compiler's.
    """
    tokens = product.shape[0] * product.shape[1] // shards(*BATCH)
    return constrain(product, axes) if tokens <= w.gate.shape[-1] else product


def _project(
    equation: str,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Returns the product in `dtype`, by default that of `x`; sums are float32 either way."""
    out = _product(equation, x, w) if dtype is None else _wide_product(equation, x, w)
    return out if bias is None else out + bias


def _product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, w, precision=precision(x.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide_product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the product in float32. Its gradient is that of `_product`: the two products of the
    backward pass take a cotangent in the dtype of `x`, or they would run in float32."""
    return _wide(equation, x, w)


def _wide(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    exact = precision(x.dtype)
    return jnp.einsum(equation, x, w, precision=exact, preferred_element_type=jnp.float32)


def _wide_forward(equation: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    # The product itself, not the function above, for a checkpoint policy to see.
    return _wide(equation, x, w), (x, w)


def _wide_backward(equation: str, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    _, pull = jax.vjp(partial(_product, equation), x, w)
    return pull(g.astype(x.dtype))


_wide_product.defvjp(_wide_forward, _wide_backward)
