"""The decoder-only transformer: its parameters, its forward pass over rows, and decoding.

Parameters are float32 and stacked over layers, which training scans. Decoding takes one array a
layer for weights and for the cache: slicing a stacked array in front of a custom call copies it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sdjax.models.network import attention, decode_gpu, lora, rope, scan
from sdjax.models.network.layer import LayerWeights, attended, block, cast, gated, rms_norm
from sdjax.models.network.model_config import ModelConfig, Rope
from sdjax.parallel.rules import HIDDEN, constrain, spec


class Layers(nnx.Module):
    """Parameters of all layers: a LayerWeights whose arrays have a leading axis of layers."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        for name, (shape, axes) in layer_shapes(cfg).items():
            shape, axes = (cfg.num_layers, *shape), ("layers", *axes)
            setattr(self, name, _param(name, shape, axes, rngs, cfg.param_dtype))

    def weights(self) -> LayerWeights:
        """Returns the parameters as arrays."""
        names = (f.name for f in fields(LayerWeights))
        return LayerWeights(**{n: vars(self)[n].get_value() for n in names if n in vars(self)})


class Transformer(nnx.Module):
    """Parameters of a model; each carries the logical axes of its dimensions as `axes`."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        table, axes = (cfg.vocab_size, cfg.embed), ("vocab", "embed")
        self.embedding = _param("embedding", table, axes, rngs, cfg.param_dtype)
        self.layers = Layers(cfg, rngs=rngs)
        self.norm = _param("norm", (cfg.embed,), (None,), rngs, cfg.param_dtype)
        if not cfg.tie_embeddings:
            self.head = _param("head", table[::-1], axes[::-1], rngs, cfg.param_dtype)
        if cfg.lora is not None:
            self.adapters = lora.Adapters(cfg.lora, layer_shapes(cfg), cfg.num_layers, rngs=rngs)


def layer_shapes(
    cfg: ModelConfig,
) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Returns shape and logical axes of every array of one layer."""
    d, f, h = cfg.embed, cfg.mlp, cfg.head_dim
    q, kv = (cfg.num_heads, h), (cfg.num_kv_heads, h)
    q_axes, kv_axes = ("heads", "head_dim"), ("kv_heads", "head_dim")
    shapes: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]] = {
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
    if cfg.qk_norm == "head":
        shapes |= {"q_norm": ((h,), (None,)), "k_norm": ((h,), (None,))}
    if cfg.qk_norm == "full":
        shapes |= {"q_norm": (q, (None, None)), "k_norm": (kv, (None, None))}
    if cfg.qkv_bias:
        shapes |= {"q_bias": (q, q_axes), "k_bias": (kv, kv_axes), "v_bias": (kv, kv_axes)}
    if cfg.o_bias:
        shapes |= {"o_bias": ((d,), (None,))}
    return shapes


def _param(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    rngs: nnx.Rngs,
    dtype: str,
) -> nnx.Param:
    if name.endswith("norm"):
        return nnx.Param(jnp.ones(shape, dtype), axes=axes)
    if name.endswith("bias"):
        return nnx.Param(jnp.zeros(shape, dtype), axes=axes)
    drawn = 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(drawn.astype(dtype), axes=axes)


def trained_layers(model: Transformer) -> tuple[Any, LayerWeights | None]:
    """Returns what is trained of the layers, stacked, and what lies frozen below it, if any."""
    if hasattr(model, lora.NAME):
        return model.adapters.weights(), model.layers.weights()
    return model.layers.weights(), None


def head_matrix(model: Transformer) -> jax.Array:
    """Returns the language model head as it is kept: float32[embed, vocab], or where it is the
    embedding too [vocab, embed]."""
    return (model.embedding if model.cfg.tie_embeddings else model.head).get_value()


def head_weight(model: Transformer) -> jax.Array:
    """Returns the weights of the language model head, float32[embed, vocab]."""
    return head_matrix(model).T if model.cfg.tie_embeddings else head_matrix(model)


def logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """Returns float32[..., vocab] for hidden states [..., embed] and a head of the same dtype."""
    return jnp.einsum(
        "...d,dv->...v",
        hidden,
        head,
        precision=attention.precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )


def hidden_states(
    model: Transformer,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    gradients: lora.Trained | None = None,
) -> jax.Array:
    """Returns the final norm's output [B, S, embed] in the compute dtype.

    tokens, positions, segment_ids: int32[B, S]. A token sees the tokens of its segment at its own
    and earlier indices; positions feed only the rotary embedding. Segment 0 is padding: what comes
    out of it is finite and without meaning. None in place of segments: every row is one sequence,
    perhaps padded on the right.

    With `gradients`, the float32 sums so far of the gradients of what is trained of the layers,
    the backward pass adds to them in place: what it gives as the gradient by `gradients` is the
    new sums, and none goes to the layers' parameters. So a second set of theirs never exists. It
    recomputes whole layers.
    """
    cfg = model.cfg
    dtype = jnp.dtype(cfg.compute_dtype)
    kinds = _Kinds.of(cfg, tokens.shape[1])
    how = attention.choose(cfg.attention, dtype, cfg.head_dim)

    def layer(x: jax.Array, scanned: tuple, context: tuple) -> jax.Array:
        own, base, window, rope_kind = scanned
        weights = cast(own, dtype) if base is None else lora.merged(base, own, cfg)
        ropes, segment_ids = context
        attentions = [
            partial(attention.attention, segment_ids=segment_ids, window=w, implementation=how)
            for w in kinds.windows
        ]

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            return _switch(window, attentions, q, k, v), None

        turn = jax.tree.map(lambda *kind: _pick(rope_kind, kind), *ropes)
        return block(x, weights, cfg, lambda y: attended(y, weights, turn, cfg, attend))[0]

    x = _embed(model.embedding.get_value(), tokens, dtype)
    scanned = (*trained_layers(model), jnp.array(kinds.window), jnp.array(kinds.rope))
    context = ([rope.tables(r, cfg.head_dim, positions) for r in kinds.ropes], segment_ids)
    if gradients is None:
        x = scan.run(_checkpointed(layer, cfg), x, scanned, context)
    else:
        x = scan.run_into(layer, x, scanned, context, gradients)
    return rms_norm(x, model.norm.get_value().astype(dtype), cfg)


def _embed(table: jax.Array, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns float32[B, S, embed]: rows of the table [vocab, embed], rounded to `dtype`."""
    # Cast after the lookup, so that a token's gradients are summed in the table's float32.
    x = jnp.take(table, tokens, axis=0).astype(dtype).astype(jnp.float32)
    # Each device looks up its columns for all rows, then columns are exchanged for rows: over fsdp
    # neither the table nor its gradient is ever whole. Over tensor the compiler gathers the table.
    return constrain(constrain(x, ("replica", None, "embed")), HIDDEN)


def _checkpointed(layer: Callable, cfg: ModelConfig) -> Callable:
    if cfg.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    keep = {"full": policies.nothing_saveable, "dots": policies.dots_with_no_batch_dims_saveable}
    # prevent_cse guards against a compiler undoing the recomputation, which a scan already does.
    return jax.checkpoint(layer, policy=keep[cfg.remat], prevent_cse=False)


@dataclass(frozen=True, kw_only=True)
class _Kinds:
    """The different windows and rotary embeddings of a model, and which of them a layer has."""

    windows: list[int | None]
    window: list[int]
    ropes: list[Rope]
    rope: list[int]

    @classmethod
    def of(cls, cfg: ModelConfig, tokens: int) -> _Kinds:
        """A window that no row of this many tokens can fill counts as none."""
        windows = [w if w is not None and w < tokens else None for w in cfg.windows]
        ropes = [cfg.rope(i) for i in range(cfg.num_layers)]
        some_windows, some_ropes = list(dict.fromkeys(windows)), list(dict.fromkeys(ropes))
        return cls(
            windows=some_windows,
            window=[some_windows.index(w) for w in windows],
            ropes=some_ropes,
            rope=[some_ropes.index(r) for r in ropes],
        )


def _switch(kind: jax.Array, functions: Sequence[Callable], *args: jax.Array) -> jax.Array:
    if len(functions) == 1:
        return functions[0](*args)
    return jax.lax.switch(kind, functions, *args)


def _pick(kind: jax.Array, choices: tuple[jax.Array, ...]) -> jax.Array:
    if len(choices) == 1:
        return choices[0]
    return jnp.where(kind == 0, choices[0], _pick(kind - 1, choices[1:]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecodeWeights:
    """A model's weights in the compute dtype, one array a layer."""

    embedding: jax.Array  # [vocab, embed]
    head: jax.Array  # [embed, vocab]
    norm: jax.Array  # [embed]
    layers: tuple[LayerWeights, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Rotated keys and values of the tokens seen, one array a layer."""

    keys: tuple[jax.Array, ...]  # each [B, C, kv_heads, head_dim] or [B, kv_heads, C, head_dim]
    values: tuple[jax.Array, ...]  # the same; see slot_axis
    length: jax.Array  # int32[B]: filled slots of each row


def slot_axis(cfg: ModelConfig) -> int:
    """Returns which axis of the cache's arrays counts slots, 1 or 2; the other is the KV heads'."""
    dtype = jnp.dtype(cfg.compute_dtype)
    return attention.slot_axis(attention.choose(cfg.attention, dtype, cfg.head_dim))


def decode_weights(model: Transformer) -> DecodeWeights:
    """Returns the weights that prefill and decode_step take; to be called inside jit."""
    dtype = jnp.dtype(model.cfg.compute_dtype)
    own, base = trained_layers(model)

    def layer(i: int) -> LayerWeights:
        at = partial(jax.tree.map, operator.itemgetter(i))
        return cast(at(own), dtype) if base is None else lora.merged(at(base), at(own), model.cfg)

    return DecodeWeights(
        embedding=model.embedding.get_value().astype(dtype),
        head=head_weight(model).astype(dtype),
        norm=model.norm.get_value().astype(dtype),
        layers=tuple(layer(i) for i in range(model.cfg.num_layers)),
    )


def decode_shardings(cfg: ModelConfig, mesh: Mesh) -> DecodeWeights:
    """Returns the sharding of every decoding weight on a mesh of rollouts."""

    def placed(*axes: str | None) -> Any:
        return NamedSharding(mesh, spec(axes))

    layer = {name: placed(*axes) for name, (_, axes) in layer_shapes(cfg).items()}
    return DecodeWeights(
        # By columns, whose parts of a token's row are joined; by rows, the table would be gathered.
        embedding=placed(None, "column"),
        head=placed("embed", "vocab"),
        norm=placed(None),
        layers=(LayerWeights(**layer),) * cfg.num_layers,
    )


def prefill(
    weights: DecodeWeights, cfg: ModelConfig, tokens: jax.Array, length: jax.Array
) -> tuple[jax.Array, Cache]:
    """Returns the hidden state [P, embed] that predicts each row's next token, and the cache.

    tokens: int32[P, S], padded on the right; length: int32[P], at least 1. The cache has S slots.
    """
    rows, slots = tokens.shape
    index = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (rows, slots))
    how = attention.choose(cfg.attention, weights.embedding.dtype, cfg.head_dim)
    axis = attention.slot_axis(how)
    turns = {r: rope.tables(r, cfg.head_dim, index) for r in _Kinds.of(cfg, slots).ropes}
    x = _embed(weights.embedding, tokens, weights.embedding.dtype)
    kept = []
    for i, layer in enumerate(weights.layers):

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, window: int | None = cfg.windows[i]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            out = attention.attention(q, k, v, segment_ids=None, window=window, implementation=how)
            return out, (k.swapaxes(1, axis), v.swapaxes(1, axis))

        sublayer = partial(attended, w=layer, rope=turns[cfg.rope(i)], cfg=cfg, attend=attend)
        x, kv = block(x, layer, cfg, sublayer)
        kept.append(kv)
    last = jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]
    keys, values = zip(*kept, strict=True)
    return rms_norm(last, weights.norm, cfg), Cache(keys=keys, values=values, length=length)


def decode_step(
    weights: DecodeWeights, cfg: ModelConfig, token: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Returns the hidden state [B, embed] that predicts the token after `token`, and the cache.

    token: int32[B]. Row b's keys and values go to slot `cache.length[b]`, which is its position; a
    row whose cache is full is not written.
    """
    positions = cache.length[:, None]
    length = cache.length + 1
    how = attention.choose(cfg.attention, weights.embedding.dtype, cfg.head_dim)
    axis = attention.slot_axis(how)
    kernels = decode_gpu.fits(cfg, how)
    turns = {r: rope.tables(r, cfg.head_dim, positions) for r in _Kinds.of(cfg, 0).ropes}
    x = _embed(weights.embedding, token[:, None], weights.embedding.dtype)
    kept = []
    for i, layer in enumerate(weights.layers):

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, i: int = i
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            keys = _write(cache.keys[i], k, cache.length, axis)
            values = _write(cache.values[i], v, cache.length, axis)
            out = attention.cached_attention(
                q, keys, values, length, window=cfg.windows[i], implementation=how
            )
            return out, (keys, values)

        sublayer = partial(attended, attend=attend)
        if kernels:
            kv, window = (cache.keys[i], cache.values[i]), cfg.windows[i]
            sublayer = partial(decode_gpu.attended, cache=kv, index=cache.length, window=window)
        sublayer = partial(sublayer, w=layer, rope=turns[cfg.rope(i)], cfg=cfg)
        x, kv = block(x, layer, cfg, sublayer, decode_gpu.gated if kernels else gated)
        kept.append(kv)
    keys, values = zip(*kept, strict=True)
    hidden = rms_norm(x[:, 0], weights.norm, cfg)
    return hidden, Cache(keys=keys, values=values, length=length)


def _write(slots: jax.Array, new: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Returns the cache with row b's slot `index[b]` of an axis replaced by `new[b, 0]`, [K, h]."""

    def one(row: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
        at = row.at[i] if axis == 1 else row.at[:, i]
        return at.set(x[0], mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.vmap(one)(slots, new, index)
