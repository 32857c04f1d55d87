"""Slots: the rows of one cache, each of which decodes a completion. The engine on the device.

Axes: S slots, C cache capacity, P prefilled prompts, W their padded width, N steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sdjax.config import Sampling
from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Cache, DecodeWeights
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN

_Array = jax.Array

BLOCK = 128  # vocabulary entries in a block of the two-level search
HIGH, LOW = 24, 20  # bits of the two parts of a share in the search


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Slots:
    """S sequences; the next token of each is not drawn yet."""

    hidden: _Array  # [S, D] at the last position
    cache: Cache  # its length is 0 in a slot that is done, so that attention reads nothing there
    done: _Array  # bool[S]: the completion has ended, or the slot never had one
    count: _Array  # int32[S]: tokens drawn
    limit: _Array  # int32[S]: the most tokens that the slot may draw
    index: _Array  # int32[S]: the completion's number, which decides its random numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """P prefilled prompts; any number of completions can start from each."""

    hidden: _Array  # [P, D] at the last position
    cache: Cache  # [P, W, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The result of one call of decode for the host; every device holds all of it."""

    tokens: _Array  # int32[S, N], a slot's new tokens first
    logprobs: _Array  # float32[S, N]
    count: _Array  # int32[S]
    done: _Array  # bool[S]
    steps: _Array  # int32[]: the steps made, at most N


@dataclass(frozen=True, kw_only=True)
class DecodeSetup:
    """The values that decoding is compiled for."""

    cfg: ModelConfig
    stops: _Array  # int32[n]: the tokens that end a completion
    pad_id: int  # the token of a slot that is done


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The jitted functions that the engine calls. Each that takes `slots` donates them."""

    empty: Callable[..., Slots]  # (rows=, capacity=)
    prefill: Callable[..., Prompts]  # weights, tokens [P, W], length [P]; returns the first rows=
    insert: Callable[[Slots, Prompts, _Array], Slots]  # see _insert
    decode: Callable[..., tuple[Slots, Drawn]]  # see _decode; steps=
    resize: Callable[..., _Array]  # see _resize; capacity=


def programs(cfg: ModelConfig, mesh: Mesh, *, stop_ids: tuple[int, ...], pad_id: int) -> Programs:
    """Returns the functions for a model on a mesh; each compiles once for each of its sizes."""
    specs, on_slots = _slot_specs(cfg), shardings(cfg, mesh)
    axis = transformer.slot_axis(cfg)
    whole: Any = rules.spec(())
    # Every batch shard holds all prompts of a prefill, so that any prompt can enter any slot
    # without communication. Their size is small: Schedule.prefill_tokens tokens, or one prompt per
    # shard.
    prompt_specs: Any = Prompts(hidden=whole, cache=_cache_specs(cfg, cache_axes(cfg, None)))
    # Each shard inserts on its own, because the compiler may gather a whole array for a scatter or
    # gather along a split axis.
    insert = jax.shard_map(
        partial(_insert, axis=axis),
        mesh=mesh,
        in_specs=(specs, prompt_specs, whole),
        out_specs=specs,
    )

    def resize(x: _Array, rows: _Array, *, capacity: int | None) -> _Array:
        spec = rules.spec(cache_axes(cfg)[: x.ndim])
        return jax.shard_map(
            partial(_resize, capacity=capacity, axis=axis),
            mesh=mesh,
            in_specs=(spec, rules.spec(("batch",))),
            out_specs=spec,
        )(x, rows)

    setup = DecodeSetup(cfg=cfg, stops=jnp.asarray(stop_ids, jnp.int32), pad_id=pad_id)
    return Programs(
        empty=jax.jit(
            partial(_empty, cfg), static_argnames=("rows", "capacity"), out_shardings=on_slots
        ),
        prefill=jax.jit(
            partial(_prefill, cfg=cfg, mesh=mesh, prompt_specs=prompt_specs),
            static_argnames="rows",
            out_shardings=jax.tree.map(partial(NamedSharding, mesh), prompt_specs),
            compiler_options=AS_WRITTEN,
        ),
        insert=jax.jit(insert, donate_argnums=0, out_shardings=on_slots),
        decode=jax.jit(
            partial(_decode, setup=setup),
            static_argnames="steps",
            donate_argnums=1,
            out_shardings=(on_slots, rules.replicated(mesh)),
            compiler_options=AS_WRITTEN,
        ),
        resize=jax.jit(resize, static_argnames="capacity"),
    )


def cache_axes(cfg: ModelConfig, rows: str | None = "batch") -> rules.Axes:
    """Returns the logical axes of the cache's arrays; `rows` is the name of the first axis."""
    axes = [rows, "kv_heads", "kv_heads", None]
    axes[transformer.slot_axis(cfg)] = None
    return tuple(axes)


def shardings(cfg: ModelConfig, mesh: Mesh) -> Slots:
    """Returns the sharding of every array of the slots."""
    return jax.tree.map(partial(NamedSharding, mesh), _slot_specs(cfg))


def _slot_specs(cfg: ModelConfig) -> Any:
    """Returns the partition of every array of the slots."""
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
    shape = [rows, cfg.num_kv_heads, cfg.head_dim]
    shape.insert(transformer.slot_axis(cfg), capacity)
    keys, values = ([jnp.zeros(shape, dtype) for _ in range(cfg.num_layers)] for _ in range(2))
    return Slots(
        hidden=jnp.zeros((rows, cfg.embed), dtype),
        cache=Cache(keys=tuple(keys), values=tuple(values), length=count),
        done=jnp.ones(rows, bool),
        count=count,
        limit=count,
        index=count,
    )


def _prefill(
    weights: DecodeWeights,
    tokens: _Array,
    length: _Array,
    *,
    rows: int,
    cfg: ModelConfig,
    mesh: Mesh,
    prompt_specs: Any,
) -> Prompts:
    """Returns the first `rows` of the prompts int32[P, W], prefilled, on every batch shard.

    `length` is int32[P], the tokens of each prompt before its padding.
    """
    hidden, cache = transformer.prefill(weights, cfg, tokens, length)
    prompts = Prompts(hidden=hidden, cache=cache)
    if mesh.size == mesh.shape["tensor"]:  # one batch shard
        return jax.tree.map(itemgetter(slice(rows)), prompts)
    specs = _slot_specs(cfg)
    return jax.shard_map(
        partial(jax.tree.map, partial(_first, rows=rows)),
        mesh=mesh,
        in_specs=(Prompts(hidden=specs.hidden, cache=specs.cache),),
        out_specs=prompt_specs,
    )(prompts)


def _first(x: _Array, *, rows: int) -> _Array:
    """Returns, whole on each batch shard, the first rows of an array that is split by rows.

    The other rows do not leave the shard that computed them.
    """
    at = jax.lax.axis_index(rules.BATCH) * x.shape[0] + jnp.arange(x.shape[0])
    out = jnp.zeros((rows, *x.shape[1:]), x.dtype)
    return jax.lax.psum(out.at[at].set(x, mode="drop", unique_indices=True), rules.BATCH)


def _insert(slots: Slots, prompts: Prompts, entries: _Array, *, axis: int) -> Slots:
    """Returns the slots of one batch shard, with completions started in some of them.

    `entries` is int32[4, M]: for each completion its slot (S: none), its row of the prompts, its
    index and its limit. Other slots are neither read nor written.
    """
    slot, row, index, limit = entries
    rows, m = slots.done.shape[0], slot.shape[0]
    at = slot - jax.lax.axis_index(rules.BATCH) * rows
    # Slots of other shards get out-of-bounds indices, which are dropped. The indices differ, so
    # that they stay unique.
    at = jnp.where((at < 0) | (at >= rows), rows + jnp.arange(m), at)

    def put(x: _Array, new: _Array) -> _Array:
        filled = (slice(None),) * (axis - 1) + (slice(new.shape[axis]),) if x.ndim == 4 else ()
        where = (at, *filled)
        return x.at[where].set(new, mode="drop", unique_indices=True)

    started = Slots(
        hidden=prompts.hidden[row],
        cache=jax.tree.map(itemgetter(row), prompts.cache),
        done=jnp.zeros(m, bool),
        count=jnp.zeros(m, jnp.int32),
        limit=limit,
        index=index,
    )
    return jax.tree.map(put, slots, started)


def _resize(x: _Array, rows: _Array, *, capacity: int | None, axis: int) -> _Array:
    """Returns the given rows of one array of the slots, on one batch shard.

    `capacity` is the new capacity of an array of the cache, None for the other arrays. A slot stays
    on its devices. Arrays are resized one at a time, so that only one of them exists twice.
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
    how: Settings,
    enough: _Array,
    *,
    steps: int,
    setup: DecodeSetup,
) -> tuple[Slots, Drawn]:
    """Returns the slots after up to `steps` more tokens in each, and these tokens.

    The loop ends early when `enough` slots are done.

    Args:
        weights: The model.
        slots: Donated. No live slot may outgrow the cache's capacity in `steps` steps.
        key: Token t of completion i draws with fold_in(fold_in(key, i), t).
        how: Temperature, top-p and top-k.
        enough: int32[], a number of slots.
        steps: Static.
        setup: Static.
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
        token, logprob = draw(logits, jax.vmap(jax.random.fold_in)(keys, slots.count), how)
        token = jnp.where(slots.done, setup.pad_id, token)
        count = slots.count + ~slots.done
        done = slots.done | jnp.any(token[:, None] == setup.stops, axis=-1)
        done |= count >= slots.limit
        hidden, cache = transformer.decode_step(weights, setup.cfg, token, slots.cache)
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
    step, slots, tokens, logprobs = jax.lax.while_loop(continues, body, start)
    drawn = Drawn(tokens=tokens, logprobs=logprobs, count=slots.count, done=slots.done, steps=step)
    return slots, drawn


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings as arrays, so that other values need no new compilation."""

    temperature: jax.Array  # float32[], 0 is greedy
    top_p: jax.Array  # float32[], 1 is off
    top_k: jax.Array  # int32[], 0 is off


def settings(cfg: Sampling) -> Settings:
    """Returns the arrays for a config section."""
    return Settings(
        temperature=jnp.float32(cfg.temperature),
        top_p=jnp.float32(cfg.top_p),
        top_k=jnp.int32(min(cfg.top_k, 2**31 - 1)),  # any number over the vocabulary is off
    )


def draw(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    """Returns int32[B] tokens and float32[B], the log-probability of each when it was drawn.

    `logits` is float32[B, V]; `keys` holds one key per row. The log-probability is that of the
    distribution after temperature, top-k and top-p; a greedy choice has log-probability 0. Where a
    logit of the row is NaN or +inf, the log-probability is NaN.
    """
    limited = (how.top_p < 1) | (how.top_k > 0)
    way = jnp.where(how.temperature == 0, 0, jnp.where(limited, 2, 1))
    ways = (_greedy, partial(_sampled, limited=False), partial(_sampled, limited=True))
    # Each branch returns two numbers per row, because a branch that returned logits would copy
    # them.
    return jax.lax.switch(way, ways, logits, keys, how)


def _greedy(logits: jax.Array, keys: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    del keys, how
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    finite = jnp.isfinite(jnp.max(logits, axis=-1))
    return token, jnp.where(finite, 0.0, jnp.nan)


def _sampled(
    logits: jax.Array, keys: jax.Array, how: Settings, *, limited: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns int32[B], a draw from softmax of each row of [B, V], and its log-probability.

    It inverts the cumulative distribution, first over blocks of the vocabulary and then inside one
    block. This takes two passes over the logits and a few random bits per row, in place of one
    random number per entry. Where a logit is NaN or +inf, the log-probability is NaN.
    """
    logits = logits / how.temperature
    if limited:
        logits = _limit(logits, how)
    b, v = logits.shape
    top = jnp.max(logits, axis=-1, keepdims=True)
    room = ((0, 0), (0, -v % BLOCK))
    blocks = jnp.pad(logits, room, constant_values=-jnp.inf).reshape(b, -1, BLOCK)
    # Behind a barrier, because XLA would sum the masses in a further pass over the logits.
    mass = jax.lax.optimization_barrier(jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1))
    bits = jax.vmap(partial(jax.random.bits, shape=(4,)))(keys)
    block = _search(mass, bits[:, 0], bits[:, 2])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - top
    entry = _search(jnp.exp(inside), bits[:, 1], bits[:, 3])
    own = jnp.take_along_axis(inside, entry[:, None], axis=-1)[:, 0]
    return (block * BLOCK + entry).astype(jnp.int32), own - jnp.log(jnp.sum(mass, axis=-1))


def _search(mass: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """Returns int32[B]: an entry of each row of [B, N], drawn in proportion to its mass.

    `high` and `low` are uint32[B], random bits. The sums are of whole numbers, in units of 2^-44 of
    the row's mass, so no rounding hides a small entry behind a large one. An entry with less than a
    unit is never drawn. Each number has two parts, because its 44 bits exceed an integer's 32.
    """
    assert mass.shape[-1] <= 1 << (32 - LOW), mass.shape  # else a sum of low parts overflows
    share = mass / jnp.sum(mass, axis=-1, keepdims=True) * 2.0**HIGH
    whole = jnp.floor(share)
    parts = jnp.stack([whole, jnp.floor((share - whole) * 2.0**LOW)], axis=1)
    reached = jnp.cumsum(parts.astype(jnp.uint32), axis=-1)
    reached_high, reached_low = _carried(reached[:, 0], reached[:, 1])
    # The shares are rounded, so their sum is 2^44 + over. What is drawn is u + u over / 2^44, for
    # a whole number u under 2^44. The wrap-around of unsigned numbers makes `over` signed.
    high, low = high >> (32 - HIGH), low >> (32 - LOW)
    over = ((reached_high[:, -1] - (1 << HIGH) << LOW) + reached_low[:, -1]).astype(jnp.int32)
    extra = jnp.floor(high * 2.0**-HIGH * over).astype(jnp.int32)
    high, low = _carried(high + (extra >> LOW).astype(jnp.uint32), low + (extra & (1 << LOW) - 1))
    past = (reached_high > high[:, None]) | (
        (reached_high == high[:, None]) & (reached_low > low[:, None])
    )
    # Rounding of `extra` may put the number a few units past the sum: then the likeliest entry.
    return jnp.where(jnp.any(past, -1), jnp.argmax(past, -1), jnp.argmax(mass, -1))


def _carried(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the two parts of a number with the low part's overflow carried into the high one."""
    low = low.astype(jnp.uint32)
    return high + (low >> LOW), low & ((1 << LOW) - 1)


def _limit(logits: jax.Array, how: Settings) -> jax.Array:
    """Returns the logits [B, V]; -inf outside the top-k entries and the top-p set among them."""
    v = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(how.top_k > 0, how.top_k, v)
    ordered = jnp.where(jnp.arange(v) < k, ordered, -jnp.inf)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # The first is kept for every top_p: float32 may round a tiny one to 0.
    kept = ((before < how.top_p) | (jnp.arange(v) == 0)) & (ordered > -jnp.inf)
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
