"""Slots: the rows of one cache, each decoding a completion. The engine's part on the device.

Axes: S slots, C cache capacity, P prefilled prompts, W their padded width, N steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Cache, DecodeWeights
from sdjax.parallel import rules
from sdjax.parallel.mesh import batch_shards
from sdjax.parallel.rounding import AS_WRITTEN
from sdjax.rollout.engine import draw

_Array = jax.Array


def cache_axes(cfg: ModelConfig, rows: str | None = "batch") -> rules.Axes:
    """Returns how each of the cache's arrays is split; `rows` is what its first axis counts."""
    axes = [rows, "kv_heads", "kv_heads", None]
    axes[transformer.slot_axis(cfg)] = None
    return tuple(axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Slots:
    """S sequences, the next token of each still to be drawn."""

    hidden: _Array  # [S, D] at the last position
    cache: Cache  # length 0 in a slot that is done: it reads nothing
    done: _Array  # bool[S]: its completion has ended, or it never had one
    count: _Array  # int32[S]: tokens drawn
    limit: _Array  # int32[S]: tokens that it may draw
    index: _Array  # int32[S]: which completion, which says what noise it draws with


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """P prefilled prompts, from which any number of completions start."""

    hidden: _Array  # [P, D] at the last position
    cache: Cache  # [P, W, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the host learns from a call of decode; whole on every device."""

    tokens: _Array  # int32[S, N], a slot's new ones first
    logprobs: _Array  # float32[S, N]
    count: _Array  # int32[S]
    done: _Array  # bool[S]
    steps: _Array  # int32[]: steps made, at most N


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The jitted functions that the engine calls. Those that take `slots` consume them."""

    empty: Callable[..., Slots]  # (rows=, capacity=)
    prefill: Callable[..., Prompts]  # weights, tokens [P, W], length [P]; rows=: the first of them
    insert: Callable[[Slots, Prompts, _Array], Slots]  # see _insert
    decode: Callable[..., tuple[Slots, Drawn]]  # see _decode; steps=
    resize: Callable[..., _Array]  # see _resize; capacity=


def programs(cfg: ModelConfig, mesh: Mesh, *, stop_ids: tuple[int, ...], pad_id: int) -> Programs:
    """Returns the functions for a model on a mesh; each compiles once for each of its sizes."""
    rep = rules.replicated(mesh)
    specs = _slot_specs(cfg)
    slots = shardings(cfg, mesh)
    whole: Any = rules.spec(())
    # Every shard of the batch has all prompts of a prefill, so any of them can enter any slot
    # without a word between devices. They are few: Schedule.prefill_tokens tokens, or one prompt a
    # shard.
    prompt_specs = Prompts(hidden=whole, cache=_cache_specs(cfg, cache_axes(cfg, None)))
    prompts = jax.tree.map(partial(NamedSharding, mesh), prompt_specs)
    stops = jnp.asarray(stop_ids, jnp.int32)
    # By shard, not by the compiler: a scatter or gather along a split axis may gather all of it.
    axis = transformer.slot_axis(cfg)
    insert = jax.shard_map(
        partial(_insert, axis=axis),
        mesh=mesh,
        in_specs=(specs, prompt_specs, whole),
        out_specs=specs,
    )

    prefilled = Prompts(hidden=specs.hidden, cache=specs.cache)

    def prefill(weights: DecodeWeights, tokens: _Array, length: _Array, *, rows: int) -> Prompts:
        hidden, cache = transformer.prefill(weights, cfg, tokens, length)
        made = Prompts(hidden=hidden, cache=cache)
        if batch_shards(mesh) == 1:
            return jax.tree.map(lambda x: x[:rows], made)
        return jax.shard_map(
            lambda made: jax.tree.map(partial(_first, rows=rows), made),
            mesh=mesh,
            in_specs=(prefilled,),
            out_specs=prompt_specs,
        )(made)

    def resize(x: _Array, rows: _Array, *, capacity: int | None) -> _Array:
        spec = rules.spec(cache_axes(cfg)[: x.ndim])
        return jax.shard_map(
            partial(_resize, capacity=capacity, axis=axis),
            mesh=mesh,
            in_specs=(spec, rules.spec(("batch",))),
            out_specs=spec,
        )(x, rows)

    return Programs(
        empty=jax.jit(
            partial(_empty, cfg), static_argnames=("rows", "capacity"), out_shardings=slots
        ),
        prefill=jax.jit(
            prefill,
            static_argnames="rows",
            out_shardings=prompts,
            compiler_options=AS_WRITTEN,
        ),
        insert=jax.jit(insert, donate_argnums=0, out_shardings=slots),
        decode=jax.jit(
            partial(_decode, cfg=cfg, stops=stops, pad_id=pad_id),
            static_argnames="steps",
            donate_argnums=1,
            out_shardings=(slots, rep),
            compiler_options=AS_WRITTEN,
        ),
        resize=jax.jit(resize, static_argnames="capacity"),
    )


def shardings(cfg: ModelConfig, mesh: Mesh) -> Slots:
    """Returns the sharding of every array of the slots."""
    return jax.tree.map(partial(NamedSharding, mesh), _slot_specs(cfg))


def _slot_specs(cfg: ModelConfig) -> Any:
    """Returns how each array of the slots is split."""
    row: Any = rules.spec(("batch",))
    cache = _cache_specs(cfg, cache_axes(cfg))
    return Slots(hidden=row, cache=cache, done=row, count=row, limit=row, index=row)


def _cache_specs(cfg: ModelConfig, axes: rules.Axes) -> Any:
    layers: Any = (rules.spec(axes),) * cfg.num_layers
    length: Any = rules.spec(axes[:1])
    return Cache(keys=layers, values=layers, length=length)


def _empty(cfg: ModelConfig, *, rows: int, capacity: int) -> Slots:
    """Returns slots without completions."""
    dtype = jnp.dtype(cfg.compute_dtype)
    count = jnp.zeros(rows, jnp.int32)

    def layers() -> tuple[_Array, ...]:
        shape = [rows, cfg.num_kv_heads, cfg.head_dim]
        shape.insert(transformer.slot_axis(cfg), capacity)
        return tuple(jnp.zeros(shape, dtype) for _ in range(cfg.num_layers))

    return Slots(
        hidden=jnp.zeros((rows, cfg.embed), dtype),
        cache=Cache(keys=layers(), values=layers(), length=count),
        done=jnp.ones(rows, bool),
        count=count,
        limit=count,
        index=count,
    )


def _first(x: _Array, *, rows: int) -> _Array:
    """Returns the first rows of an array that is split by rows; on one shard, whole on each.

    The others need not leave the shard that made them.
    """
    at = jax.lax.axis_index(rules.BATCH) * x.shape[0] + jnp.arange(x.shape[0])
    out = jnp.zeros((rows, *x.shape[1:]), x.dtype)
    return jax.lax.psum(out.at[at].set(x, mode="drop", unique_indices=True), rules.BATCH)


def _insert(slots: Slots, prompts: Prompts, entries: _Array, *, axis: int) -> Slots:
    """Returns the slots with completions started in some of them; on one shard of the batch.

    entries: int32[4, M], for each completion its slot (S: none), its row of the prompts, its index
    and its limit. No other slot is read or written.
    """
    slot, row, index, limit = entries
    rows, m = slots.done.shape[0], slot.shape[0]
    at = slot - jax.lax.axis_index(rules.BATCH) * rows
    # Another shard's: out of bounds, each its own so that indices stay unique.
    at = jnp.where((at < 0) | (at >= rows), rows + jnp.arange(m), at)

    def put(x: _Array, new: _Array) -> _Array:
        filled = (slice(None),) * (axis - 1) + (slice(new.shape[axis]),) if x.ndim == 4 else ()
        where = (at, *filled)
        return x.at[where].set(new, mode="drop", unique_indices=True)

    def started(x: _Array, prompt: _Array) -> _Array:
        return put(x, prompt[row])

    return Slots(
        hidden=started(slots.hidden, prompts.hidden),
        cache=jax.tree.map(started, slots.cache, prompts.cache),
        done=put(slots.done, jnp.zeros(m, bool)),
        count=put(slots.count, jnp.zeros(m, jnp.int32)),
        limit=put(slots.limit, limit),
        index=put(slots.index, index),
    )


def _resize(x: _Array, rows: _Array, *, capacity: int | None, axis: int) -> _Array:
    """Returns the given rows of one array of the slots; of the cache's, with another capacity.

    On one shard of the batch: a slot stays on its devices. One array at a time, so that no more
    than one of them exists twice.
    """
    x = x.at[rows].get(mode="promise_in_bounds")
    if capacity is None:
        return x
    kept = jax.lax.slice_in_dim(x, 0, min(capacity, x.shape[axis]), axis=axis)
    room = [(0, 0)] * 4
    room[axis] = (0, capacity - kept.shape[axis])
    return jnp.pad(kept, room)


def _decode(
    weights: DecodeWeights,
    slots: Slots,
    key: _Array,
    how: draw.Settings,
    enough: _Array,
    *,
    steps: int,
    cfg: ModelConfig,
    stops: _Array,
    pad_id: int,
) -> tuple[Slots, Drawn]:
    """Draws up to `steps` tokens in every slot, until int32[] `enough` slots are done.

    Token t of completion i draws with fold_in(fold_in(key, i), t). No live slot may outgrow the
    capacity.
    """
    rows = slots.done.shape[0]
    keys = jax.vmap(partial(jax.random.fold_in, key))(slots.index)
    Carry = tuple[_Array, Slots, _Array, _Array]

    def continues(carry: Carry) -> _Array:
        step, slots, _, _ = carry
        return (step < steps) & (jnp.sum(slots.done) < enough)

    def body(carry: Carry) -> Carry:
        step, slots, tokens, logprobs = carry
        logits = transformer.logits(slots.hidden, weights.head)
        token, logprob = draw.draw(logits, jax.vmap(jax.random.fold_in)(keys, slots.count), how)
        token = jnp.where(slots.done, pad_id, token)
        count = slots.count + ~slots.done
        done = slots.done | jnp.any(token[:, None] == stops, axis=-1) | (count >= slots.limit)
        hidden, cache = transformer.decode_step(weights, cfg, token, slots.cache)
        length = jnp.where(done, 0, cache.length)
        slots = Slots(
            hidden=hidden,
            cache=Cache(keys=cache.keys, values=cache.values, length=length),
            done=done,
            count=count,
            limit=slots.limit,
            index=slots.index,
        )
        return step + 1, slots, tokens.at[:, step].set(token), logprobs.at[:, step].set(logprob)

    tokens, logprobs = jnp.zeros((rows, steps), jnp.int32), jnp.zeros((rows, steps), jnp.float32)
    start = (jnp.int32(0), slots, tokens, logprobs)
    made, slots, tokens, logprobs = jax.lax.while_loop(continues, body, start)
    drawn = Drawn(tokens=tokens, logprobs=logprobs, count=slots.count, done=slots.done, steps=made)
    return slots, drawn
