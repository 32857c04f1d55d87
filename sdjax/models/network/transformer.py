"""The decoder-only transformer: its parameters, its forward pass over rows, and decoding.

Parameters are float32 and stacked over layers, because training scans over layers. Decoding takes
one array per layer, of weights and of the cache, because a slice of a stacked array is copied
before each custom call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sdjax.models.families.registry import FAMILIES, layer_shapes
from sdjax.models.network import attention, decode_gpu, lora
from sdjax.models.network.layer import (
    LayerWeights,
    attention_inputs,
    cast,
    dense_mlp,
    final_norm,
    finish,
)
from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel.rules import HIDDEN, constrain, spec

# (activations, one layer's share of the scanned arrays, context=...) to (activations, None).
Layer = Callable[..., tuple[jax.Array, None]]

# What the forward pass keeps for the backward pass, by `remat`.
KEPT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Layers(nnx.Module):
    """The parameters of all layers: the arrays of a layer, with a leading axis of layers."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        for name, (shape, axes) in layer_shapes(cfg).items():
            shape, axes = (cfg.num_layers, *shape), ("layers", *axes)
            setattr(self, name, _param(name, shape, axes, rngs, cfg))


class Transformer(nnx.Module):
    """The parameters of a model. Each has the logical axes of its dimensions as `axes`."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        table, axes = (cfg.vocab_size, cfg.embed), ("vocab", "embed")
        self.embedding = _param("embedding", table, axes, rngs, cfg)
        self.layers = Layers(cfg, rngs=rngs)
        self.norm = _param("norm", (cfg.embed,), (None,), rngs, cfg)
        if not cfg.tie_embeddings:
            self.head = _param("head", table[::-1], axes[::-1], rngs, cfg)
        if cfg.lora is not None:
            self.adapters = lora.Adapters(cfg.lora, layer_shapes(cfg), cfg.num_layers, rngs=rngs)


def _param(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    rngs: nnx.Rngs,
    cfg: ModelConfig,
) -> nnx.Param:
    """Returns a parameter's first value: norms 1, biases 0, matrices normal with deviation 0.02.

    What `cfg.norm_offset` adds to a norm is not stored.

    Args:
        name: The parameter's name; its ending tells norms and biases.
        shape: Its shape.
        axes: The logical axes of its dimensions.
        rngs: The source of random numbers.
        cfg: The model. Values are drawn in float32, whatever its dtype.
    """
    dtype = cfg.param_dtype
    if name.endswith("norm"):
        return nnx.Param(jnp.full(shape, 1 - cfg.norm_offset, dtype), axes=axes)
    if name.endswith("bias"):
        return nnx.Param(jnp.zeros(shape, dtype), axes=axes)
    drawn = 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(drawn.astype(dtype), axes=axes)


def trained_layers(model: Transformer) -> tuple[lora.Trained, LayerWeights | None]:
    """Returns the trained arrays of all layers, stacked, and those that adapters freeze, if any."""
    params = (item for item in vars(model.layers).items() if isinstance(item[1], nnx.Param))
    weights = LayerWeights.of({name: param.get_value() for name, param in params})
    if hasattr(model, lora.NAME):
        return model.adapters.weights(), weights
    return weights, None


def head_matrix(model: Transformer) -> jax.Array:
    """Returns the language model head as stored, float32[embed, vocab].

    A head that is tied to the embedding is [vocab, embed].
    """
    return (model.embedding if model.cfg.tie_embeddings else model.head).get_value()


def head_weight(model: Transformer) -> jax.Array:
    """Returns the weights of the language model head, float32[embed, vocab]."""
    return head_matrix(model).T if model.cfg.tie_embeddings else head_matrix(model)


def logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """Returns float32[..., vocab] for hidden states [..., embed] and a head of the same dtype."""
    return attention.product("...d,dv->...v", hidden, head, jnp.float32)


def hidden_states(
    model: Transformer,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    gradients: lora.Trained | None = None,
) -> jax.Array:
    """Returns the output of the final norm, [B, S, embed] in the compute dtype.

    A token sees the tokens of its segment at its own and at earlier indices.

    Args:
        model: The parameters.
        tokens: int32[B, S].
        positions: int32[B, S]. They reach nothing but the rotary embedding.
        segment_ids: int32[B, S]. Segment 0 is padding; its outputs are finite and have no meaning.
            None: every row is one sequence, perhaps padded on the right.
        gradients: float32 sums of the gradients of the trained arrays of the layers. The backward
            pass adds to them in place: the gradient with respect to `gradients` is the new sums,
            and the layers' parameters get none. So no second set of gradients exists. Whole
            layers are recomputed then. None: ordinary gradients.
    """
    cfg = model.cfg
    dtype = jnp.dtype(cfg.compute_dtype)
    how, mlp = attention.choose(cfg.attention, dtype, cfg.head_dim), FAMILIES[cfg.family].mlp
    # A window at least as long as a row hides nothing, so it counts as none.
    rows = tokens.shape[1]
    windows = [w if w is not None and w < rows else None for w in (k.window for k in cfg.layers)]
    ropes = [kind.rope for kind in cfg.layers]
    some_windows, some_ropes = list(dict.fromkeys(windows)), list(dict.fromkeys(ropes))
    attend = partial(attention.attention, implementation=how)

    def layer(x: jax.Array, scanned: tuple, context: tuple) -> tuple[jax.Array, None]:
        own, base, window, rope = scanned
        weights = cast(own, dtype) if base is None else lora.merged(base, own, cfg)
        tables, segment_ids = context
        table = tables[-1]
        for i, other in reversed(list(enumerate(tables[:-1]))):
            table = jax.tree.map(partial(jnp.where, rope == i), other, table)
        q, k, v = attention_inputs(x, weights, table, cfg)
        choices = [partial(attend, segment_ids=segment_ids, window=w) for w in some_windows]
        one = len(choices) == 1
        out = choices[0](q, k, v) if one else jax.lax.switch(window, choices, q, k, v)
        return finish(x, out, weights, cfg, mlp), None

    x = _embed(model.embedding.get_value(), tokens, dtype, cfg)
    window = jnp.array([some_windows.index(w) for w in windows])
    rope = jnp.array([some_ropes.index(r) for r in ropes])
    scanned = (*trained_layers(model), window, rope)
    tables = [attention.rotary_tables(r, cfg.head_dim, positions) for r in some_ropes]
    context = (tables, segment_ids)
    if gradients is not None:
        x = _scan_into(layer, x, scanned, context, gradients)
    else:
        if cfg.remat != "none":
            # A scan already keeps the compiler from undoing the recomputation.
            layer = jax.checkpoint(layer, policy=KEPT[cfg.remat], prevent_cse=False)
        x, _ = jax.lax.scan(partial(layer, context=context), x, scanned)
    return final_norm(x, model.norm.get_value().astype(dtype), cfg)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_into(layer: Layer, x: jax.Array, scanned: Any, context: Any, gradients: Any) -> jax.Array:
    """Returns `x` after all layers. Its gradient with respect to `gradients` is the new sums.

    The sums are updated in place, so the gradients of several microbatches take the memory of one.
    Autodiff of a scan would make the whole gradient of each microbatch before it is added.

    Args:
        layer: One layer.
        x: float32[B, S, embed].
        scanned: A tuple of arrays with a leading axis of layers. Its first part, the trained
            weights, has the structure of `gradients`. It gets no gradient.
        context: What all layers share. It gets no gradient.
        gradients: The sums so far.
    """
    del gradients
    return jax.lax.scan(partial(layer, context=context), x, scanned)[0]


def _scan_into_forward(
    layer: Layer, x: jax.Array, scanned: Any, context: Any, gradients: Any
) -> tuple[jax.Array, Any]:
    out, inputs = jax.lax.scan(lambda x, s: (layer(x, s, context)[0], x), x, scanned)
    return out, (inputs, scanned, context, gradients)


def _scan_into_backward(
    layer: Layer, saved: Any, g: jax.Array
) -> tuple[jax.Array, None, None, Any]:
    inputs, scanned, context, gradients = saved
    count = inputs.shape[0]

    def one(done: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        g, gradients = carry
        i = count - 1 - done

        def at(stacked: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(stacked, i, keepdims=False)

        weights, *rest = jax.tree.map(at, scanned)
        _, pull = jax.vjp(lambda x, w: layer(x, (w, *rest), context)[0], at(inputs), weights)
        g, added = pull(g)
        gradients = jax.tree.map(
            lambda total, new: jax.lax.dynamic_update_index_in_dim(total, at(total) + new, i, 0),
            gradients,
            added,
        )
        return g, gradients

    g, gradients = jax.lax.fori_loop(0, count, one, (g, gradients))
    return g, None, None, gradients


_scan_into.defvjp(_scan_into_forward, _scan_into_backward)


def _embed(table: jax.Array, tokens: jax.Array, dtype: jnp.dtype, cfg: ModelConfig) -> jax.Array:
    """Returns float32[B, S, embed]: rows of the table [vocab, embed], rounded to `dtype`.

    `cfg.embed_scale` multiplies them after that.
    """
    # Cast after the lookup, so that the gradients of a token are summed in the table's float32.
    x = jnp.take(table, tokens, axis=0).astype(dtype).astype(jnp.float32)
    x = x if cfg.embed_scale == 1.0 else x * cfg.embed_scale
    # Each device looks up its columns for all rows; then columns are exchanged for rows. So over
    # fsdp neither the table nor its gradient is ever whole. Over tensor the compiler gathers it.
    return constrain(constrain(x, ("replica", None, "embed")), HIDDEN)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecodeWeights:
    """A model's weights in the compute dtype, one array per layer."""

    embedding: jax.Array  # [vocab, embed]
    head: jax.Array  # [embed, vocab]
    norm: jax.Array  # [embed]
    layers: tuple[LayerWeights, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Rotated keys, and values, of the tokens seen so far, one array per layer."""

    keys: tuple[jax.Array, ...]  # each [B, C, kv_heads, head_dim] or [B, kv_heads, C, head_dim]
    values: tuple[jax.Array, ...]  # the same; see slot_axis
    length: jax.Array  # int32[B]: filled slots of each row


def slot_axis(cfg: ModelConfig) -> int:
    """Returns which axis of the cache's arrays counts slots, 1 or 2; the other counts KV heads."""
    dtype = jnp.dtype(cfg.compute_dtype)
    return attention.SLOT_AXIS[attention.choose(cfg.attention, dtype, cfg.head_dim)]


def decode_weights(model: Transformer) -> DecodeWeights:
    """Returns the weights that prefill and decode_step take. Call it inside jit."""
    dtype = jnp.dtype(model.cfg.compute_dtype)
    own, base = trained_layers(model)
    layers = []
    for i in range(model.cfg.num_layers):
        at = partial(jax.tree.map, operator.itemgetter(i))
        one = at(own)
        layers.append(cast(one, dtype) if base is None else lora.merged(at(base), one, model.cfg))
    return DecodeWeights(
        embedding=model.embedding.get_value().astype(dtype),
        head=head_weight(model).astype(dtype),
        norm=model.norm.get_value().astype(dtype),
        layers=tuple(layers),
    )


def decode_shardings(cfg: ModelConfig, mesh: Mesh) -> DecodeWeights:
    """Returns the sharding of every decoding weight on a mesh of rollouts."""

    def placed(*axes: str | None) -> Any:
        return NamedSharding(mesh, spec(axes))

    layer = {name: placed(*axes) for name, (_, axes) in layer_shapes(cfg).items()}
    return DecodeWeights(
        # The table is split by columns, which are joined after a lookup. Split by rows, it would
        # be gathered whole.
        embedding=placed(None, "column"),
        head=placed("embed", "vocab"),
        norm=placed(None),
        layers=(LayerWeights.of(layer),) * cfg.num_layers,
    )


def prefill(
    weights: DecodeWeights, cfg: ModelConfig, tokens: jax.Array, length: jax.Array
) -> tuple[jax.Array, Cache]:
    """Returns the hidden state [P, embed] that predicts each row's next token, and the cache.

    tokens: int32[P, S], padded on the right; length: int32[P], at least 1. The cache has S slots.
    """
    x, keys, values = _through_layers(weights, cfg, tokens)
    last = jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]
    cache = Cache(keys=keys, values=values, length=length)
    return final_norm(last, weights.norm, cfg), cache


def predicting_states(
    weights: DecodeWeights, cfg: ModelConfig, tokens: jax.Array, index: jax.Array
) -> jax.Array:
    """Returns the hidden states [P, T, embed] that predict the token after each `index`.

    tokens: int32[P, S], padded on the right; index: int32[P, T], positions in the rows.
    """
    x, _, _ = _through_layers(weights, cfg, tokens)
    return final_norm(jnp.take_along_axis(x, index[..., None], axis=1), weights.norm, cfg)


def _through_layers(
    weights: DecodeWeights, cfg: ModelConfig, tokens: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Returns the output [P, S, embed] of the last layer, and all keys and values, per layer."""
    rows, slots = tokens.shape
    index = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (rows, slots))
    how = attention.choose(cfg.attention, weights.embedding.dtype, cfg.head_dim)
    axis, mlp = attention.SLOT_AXIS[how], FAMILIES[cfg.family].mlp
    ropes = dict.fromkeys(kind.rope for kind in cfg.layers)
    tables = {r: attention.rotary_tables(r, cfg.head_dim, index) for r in ropes}
    x = _embed(weights.embedding, tokens, weights.embedding.dtype, cfg)
    keys, values = [], []
    for layer, kind in zip(weights.layers, cfg.layers, strict=True):
        q, k, v = attention_inputs(x, layer, tables[kind.rope], cfg)
        out = attention.attention(q, k, v, segment_ids=None, window=kind.window, implementation=how)
        keys.append(k.swapaxes(1, axis))
        values.append(v.swapaxes(1, axis))
        x = finish(x, out, layer, cfg, mlp)
    return x, tuple(keys), tuple(values)


def decode_step(
    weights: DecodeWeights, cfg: ModelConfig, token: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Returns the hidden state [B, embed] that predicts the token after `token`, and the cache.

    token: int32[B]. Row b's keys and values go to slot `cache.length[b]`, which is its position. A
    row whose cache is full is not written.
    """
    index, length = cache.length, cache.length + 1
    how = attention.choose(cfg.attention, weights.embedding.dtype, cfg.head_dim)
    write = jax.vmap(partial(_write, axis=attention.SLOT_AXIS[how]))
    mlp = FAMILIES[cfg.family].mlp
    kernels = how == "cudnn" and decode_gpu.fits(cfg)
    if kernels and mlp is dense_mlp:
        mlp = decode_gpu.dense_mlp
    ropes = dict.fromkeys(kind.rope for kind in cfg.layers)
    tables = {r: attention.rotary_tables(r, cfg.head_dim, index[:, None]) for r in ropes}
    x = _embed(weights.embedding, token[:, None], weights.embedding.dtype, cfg)
    all_keys, all_values = [], []
    for i, (layer, kind) in enumerate(zip(weights.layers, cfg.layers, strict=True)):
        keys, values, table = cache.keys[i], cache.values[i], tables[kind.rope]
        if kernels:
            slots = (keys, values, index)
            out, keys, values = decode_gpu.attend(x, layer, table, cfg, slots, kind.window)
        else:
            q, k, v = attention_inputs(x, layer, table, cfg)
            keys, values = write(keys, k, index), write(values, v, index)
            out = attention.cached_attention(
                q, keys, values, length, window=kind.window, implementation=how
            )
        all_keys.append(keys)
        all_values.append(values)
        x = finish(x, out, layer, cfg, mlp)
    cache = Cache(keys=tuple(all_keys), values=tuple(all_values), length=length)
    return final_norm(x[:, 0], weights.norm, cfg), cache


def _write(row: jax.Array, new: jax.Array, index: jax.Array, *, axis: int) -> jax.Array:
    """Returns one row of a cache with its slot `index` replaced by new [1, K, h].

    `axis` is that of the slots in the whole cache. An index beyond the row writes nothing.
    """
    at = row.at[index] if axis == 1 else row.at[:, index]
    return at.set(new[0], mode="drop", unique_indices=True, indices_are_sorted=True)
