"""One transformer layer. Training, prefill and decoding run the same functions:

    q, k, v = attention_inputs(x, weights, rope, cfg)
    x = finish(x, attention(q, k, v), weights, cfg, mlp)

Only the attention differs between rows of tokens and a cache. `x` is the residual stream
float32[B, S, embed]; everything else has the dtype of the weights. The stream is float32 because
the sampler and the trainer compute the same sums in another order. If each sum were rounded to
bfloat16, their results would drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from operator import methodcaller

import jax
import jax.numpy as jnp

from sdjax.models.network.attention import product, rotate
from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel.rules import BATCH, HIDDEN, Axes, constrain, shards

Shapes = Mapping[str, tuple[tuple[int, ...], Axes]]
"""Shape and logical axes of arrays by name. A leading axis "experts" counts experts."""

# How many trailing dimensions of each matrix are outputs. Other arrays are no matrices.
OUTPUTS = {"q": 2, "k": 2, "v": 2, "o": 1, "gate": 1, "up": 1, "down": 1}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

QUERY = ("batch", None, "heads", "head_dim")
KEY = ("batch", None, "kv_heads", "head_dim")
INNER = ("batch", None, "mlp")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The weights of one layer, or of all layers if every array has a leading axis of layers."""

    q: jax.Array  # [embed, heads, head_dim]
    k: jax.Array  # [embed, kv_heads, head_dim]
    v: jax.Array  # [embed, kv_heads, head_dim]
    o: jax.Array  # [heads, head_dim, embed]
    gate: jax.Array  # [embed, mlp]; here and below a family's own MLP may have other shapes
    up: jax.Array  # [embed, mlp]
    down: jax.Array  # [mlp, embed]
    attention_norm: jax.Array  # [embed]
    mlp_norm: jax.Array  # [embed]
    attention_post_norm: jax.Array | None = None  # [embed], of four norms that after attention
    mlp_post_norm: jax.Array | None = None  # [embed]
    q_norm: jax.Array | None = None  # [head_dim], or [heads, head_dim] over all heads
    k_norm: jax.Array | None = None  # [head_dim], or [kv_heads, head_dim]
    q_bias: jax.Array | None = None  # [heads, head_dim]
    k_bias: jax.Array | None = None  # [kv_heads, head_dim]
    v_bias: jax.Array | None = None  # [kv_heads, head_dim]
    o_bias: jax.Array | None = None  # [embed]
    others: dict[str, jax.Array] = field(default_factory=dict)
    """Arrays that only the family's own MLP reads, by their names in its layer shapes."""

    @classmethod
    def of(cls, arrays: Mapping[str, jax.Array]) -> LayerWeights:
        """Returns the weights of a layer from its arrays by name."""
        named = {f.name for f in fields(cls)}
        others = {name: x for name, x in arrays.items() if name not in named}
        return cls(**{n: x for n, x in arrays.items() if n in named}, others=others)


Mlp = Callable[[jax.Array, LayerWeights, ModelConfig], jax.Array]
"""Inputs [B, S, embed] to float32[B, S, embed], which is added to the residual stream."""


def layer_shapes(cfg: ModelConfig) -> Shapes:
    """Returns shape and logical axes of every array of one layer with the dense gated MLP."""
    d, f, h = cfg.embed, cfg.mlp, cfg.head_dim
    q, kv = (cfg.num_heads, h), (cfg.num_kv_heads, h)
    q_axes, kv_axes = ("heads", "head_dim"), ("kv_heads", "head_dim")
    shapes: dict[str, tuple[tuple[int, ...], Axes]] = {
        "q": ((d, *q), ("embed", *q_axes)),
        "k": ((d, *kv), ("embed", *kv_axes)),
        "v": ((d, *kv), ("embed", *kv_axes)),
        "o": ((*q, d), (*q_axes, "embed")),
        "gate": ((d, f), ("embed", "mlp")),
        "up": ((d, f), ("embed", "mlp")),
        "down": ((f, d), ("mlp", "embed")),
        "attention_norm": ((d,), (None,)),
        "mlp_norm": ((d,), (None,)),
    }
    if cfg.norm_placement == "both":
        shapes |= {n: ((d,), (None,)) for n in ("attention_post_norm", "mlp_post_norm")}
    if cfg.qk_norm == "head":
        shapes |= {"q_norm": ((h,), (None,)), "k_norm": ((h,), (None,))}
    if cfg.qk_norm == "full":
        shapes |= {"q_norm": (q, (None, None)), "k_norm": (kv, (None, None))}
    if cfg.qkv_bias:
        shapes |= {"q_bias": (q, q_axes), "k_bias": (kv, kv_axes), "v_bias": (kv, kv_axes)}
    if cfg.o_bias:
        shapes |= {"o_bias": ((d,), (None,))}
    return shapes


def cast(weights: LayerWeights, dtype: jnp.dtype) -> LayerWeights:
    """Returns the weights in the compute dtype."""
    return jax.tree.map(methodcaller("astype", dtype), weights)


def rms_norm(x: jax.Array, scale: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Returns `x` divided by its root mean square, times `scale`, in the dtype of `scale`.

    The mean is over the axes that `scale` has. The computation is in float32; `cfg.norm_cast` says
    whether the cast back comes before or after the product. `cfg.norm_offset` is added to `scale`.
    """
    dtype, axes = scale.dtype, tuple(range(-scale.ndim, 0))
    if cfg.norm_offset:
        scale = scale.astype(jnp.float32) + cfg.norm_offset
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axes, keepdims=True) + cfg.norm_eps)
    if cfg.norm_cast == "before":
        return wide.astype(dtype) * scale.astype(dtype)
    return (wide * scale.astype(jnp.float32)).astype(dtype)


def sublayer_input(x: jax.Array, norm: jax.Array, w: LayerWeights, cfg: ModelConfig) -> jax.Array:
    """Returns the input of a sublayer: the norm of the residual stream, or the stream itself."""
    return x.astype(w.q.dtype) if cfg.norm_placement == "post" else rms_norm(x, norm, cfg)


def _sublayer_output(
    x: jax.Array, norm: jax.Array, post_norm: jax.Array | None, cfg: ModelConfig
) -> jax.Array:
    """Returns the part that a sublayer adds to the residual stream: `x`, or the norm of it."""
    after = norm if cfg.norm_placement == "post" else post_norm
    return x if after is None else rms_norm(x, after, cfg)


def final_norm(x: jax.Array, scale: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Returns the input of the head, from the residual stream after all layers.

    Logits are linear in it, so `cfg.logits_divisor` divides it in their place.
    """
    return _times(rms_norm(x, scale, cfg), 1.0 / cfg.logits_divisor)


def _times(x: jax.Array, factor: float) -> jax.Array:
    """Returns `x * factor` in the dtype of `x`. A factor of 1 adds nothing to the program."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def attention_inputs(
    x: jax.Array,  # float32[B, S, embed]
    w: LayerWeights,
    rope: tuple[jax.Array, ...],  # what rotary_tables returns
    cfg: ModelConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns rotated queries, rotated keys and values, each [B, S, heads, head_dim]."""
    x = sublayer_input(x, w.attention_norm, w, cfg)
    heads = []
    for matrix, bias, axes in ((w.q, w.q_bias, QUERY), (w.k, w.k_bias, KEY), (w.v, w.v_bias, KEY)):
        # Values are float32 as well, so that XLA can make one product of the three.
        y = wide_product("bsd,dnh->bsnh", x, matrix)
        heads.append(_by_columns(y if bias is None else y + bias, axes, cfg.mlp))
    q, k, v = heads
    v = v.astype(x.dtype)
    if w.q_norm is not None and w.k_norm is not None:
        q = rms_norm(q, w.q_norm.astype(q.dtype), cfg)
        k = rms_norm(k, w.k_norm.astype(k.dtype), cfg)
    cos, sin, *growth = rope
    q = rotate(q, cos, sin)
    q = q * growth[0] if growth else q
    q, k = _times(q, cfg.query_factor).astype(v.dtype), rotate(k, cos, sin).astype(v.dtype)
    return constrain(q, QUERY), constrain(k, KEY), constrain(v, KEY)


def finish(
    x: jax.Array, attended: jax.Array, w: LayerWeights, cfg: ModelConfig, mlp: Mlp
) -> jax.Array:
    """Returns the layer's output float32[B, S, embed].

    Args:
        x: The layer's input float32[B, S, embed].
        attended: The attention's output [B, S, heads, head_dim].
        w: The layer's weights.
        cfg: The model's sizes.
        mlp: The family's MLP.
    """
    inner = to_residual("bsnh,nhd->bsd", attended, w.o, w.o_bias)
    added = _sublayer_output(inner, w.attention_norm, w.attention_post_norm, cfg)
    x = x + _times(added, cfg.residual_scale)
    inner = mlp(sublayer_input(x, w.mlp_norm, w, cfg), w, cfg)
    added = _sublayer_output(inner, w.mlp_norm, w.mlp_post_norm, cfg)
    x = x + _times(added, cfg.residual_scale)
    return constrain(x, HIDDEN)


def dense_mlp(x: jax.Array, w: LayerWeights, cfg: ModelConfig) -> jax.Array:
    """Returns down(silu(gate(x)) * up(x)), float32[B, S, embed], for inputs x [B, S, embed].

    `cfg.activation` may name another function than silu.
    """
    return to_residual("bsf,fd->bsd", gated(x, w, cfg.activation), w.down, None)


def gated(x: jax.Array, w: LayerWeights, activation: str = "silu") -> jax.Array:
    """Returns activation(gate(x)) * up(x), [B, S, mlp], for inputs x [B, S, embed]."""
    columns = w.gate.shape[-1]
    gate = _by_columns(product("bsd,df->bsf", x, w.gate), INNER, columns).astype(jnp.float32)
    up = _by_columns(product("bsd,df->bsf", x, w.up), INNER, columns)
    return (ACTIVATIONS[activation](gate) * up).astype(x.dtype)


def to_residual(equation: str, x: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns float32[B, S, embed], the product of x [B, S, ...] that is added to the residual.

    On a GPU the product is behind a barrier, so that XLA cannot fuse the addition into the matrix
    product. This avoids a fault in cuBLASLt 13 on an H100. Its kernel that adds a product to a
    float32 matrix (nvjet_sm90_tss_192x64_64x6_1x4_h_bx_NNT) ends the process with "unspecified
    launch failure", about once in 20,000 launches. A core dump shows why: blocks signal blocks of
    their cluster that have already ended. The barrier costs nothing, because the addition is fused
    into the next norm instead.
    """
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and x.shape[1] == 1 and shards("tensor") == 1 and x.dtype != jnp.float32:
        out = in_parts(x.reshape(x.shape[0], -1), w.reshape(-1, w.shape[-1])).sum(0)[:, None]
        return out if bias is None else out + bias
    out = wide_product(equation, x, w)
    out = out if bias is None else out + bias
    return jax.lax.optimization_barrier(out) if on_gpu else out


def in_parts(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns float32[P, B, N], parts that sum over P to the product of x [B, K] and w [K, N].

    A product of few rows is cut along K until its tiles keep a GPU's processors reading. XLA cuts
    it too, but adds the parts up in a separate kernel; the caller adds these up where it uses
    them. Cut so, Qwen3-1.7B on an H200 decodes 64 rows 3 % faster. More rows are not cut, because
    256 rows would decode 6 % slower. The barrier is that of `to_residual`.
    """
    rows, inner = x.shape
    parts = 1
    if rows // shards(*BATCH) <= 64:
        while parts * w.shape[1] < 64 * 256 and inner % (2 * parts) == 0 and inner // parts > 256:
            parts *= 2
    x, w = x.reshape(rows, parts, -1), w.reshape(parts, -1, w.shape[1])
    return jax.lax.optimization_barrier(product("bsk,skn->sbn", x, w, jnp.float32))


def _by_columns(out: jax.Array, axes: Axes, columns: int) -> jax.Array:
    """Returns a product [B, S, ...]; if it has few tokens, split by columns over `tensor`.

    Hidden states are split by tokens, so over `tensor` either they or the matrix must be gathered.
    A gathered matrix also has its whole gradient summed. Either way costs 6 bytes x embed: for each
    token, or for each of the MLP's `columns`. (bfloat16 is gathered, float32 is scattered.) With
    fewer tokens than columns it is cheaper to gather tokens. The split is then pinned, because the
    compiler does not always see this. With more tokens the compiler chooses.
    """
    tokens = out.shape[0] * out.shape[1] // shards(*BATCH)
    return constrain(out, axes) if tokens <= columns else out


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the einsum of x and w in float32, with the gradient of the einsum in their dtype.

    The cotangent is cast to the dtype of `x` first. Otherwise the two products of the backward
    pass would run in float32.
    """
    return product(equation, x, w, jnp.float32)


def _wide_forward(equation: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    # Not `wide_product`, because a checkpoint policy must see the matrix product itself.
    return product(equation, x, w, jnp.float32), (x, w)


def _wide_backward(equation: str, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    _, pull = jax.vjp(partial(product, equation), x, w)
    return pull(g.astype(x.dtype))


wide_product.defvjp(_wide_forward, _wide_backward)
