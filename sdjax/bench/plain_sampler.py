"""The plain loop: one batch, decoded until its last completion ends.

What the engine is tested against and measured against. No job samples with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Cache, DecodeWeights
from sdjax.parallel import rules
from sdjax.parallel.rounding import AS_WRITTEN
from sdjax.rollout.engine import draw
from sdjax.rollout.engine.slots import cache_axes

_Array = jax.Array


def make(
    cfg: ModelConfig, *, stop_ids: tuple[int, ...], pad_id: int
) -> Callable[..., tuple[_Array, _Array, _Array]]:
    """Returns `_generate` for a model, jitted; group_size and capacity are static."""
    stops = jnp.asarray(stop_ids, jnp.int32)
    return jax.jit(
        partial(_generate, cfg=cfg, stops=stops, pad_id=pad_id),
        static_argnames=("group_size", "capacity"),
        compiler_options=AS_WRITTEN,
    )


def _generate(
    weights: DecodeWeights,
    prompt: _Array,
    length: _Array,
    limit: _Array,
    key: _Array,
    how: draw.Settings,
    *,
    group_size: int,
    capacity: int,
    cfg: ModelConfig,
    stops: _Array,
    pad_id: int,
) -> tuple[_Array, _Array, _Array]:
    """Returns tokens int32[B, T], logprobs float32[B, T] and counts int32[B], B = P x group_size.

    prompt: int32[P, S], padded on the right; length: int32[P]; limit: int32[B], at most the
    capacity T.
    """
    b = prompt.shape[0] * group_size
    hidden, cache = transformer.prefill(weights, cfg, prompt, length)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(b))

    def continues(state: tuple) -> _Array:
        return ~jnp.all(state[2])

    def body(state: tuple) -> tuple:
        step, (hidden, cache), done, tokens, logprobs, count = state
        logits = transformer.logits(hidden, weights.head)
        token, logprob = draw.draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), how)
        token, logprob = jnp.where(done, pad_id, token), jnp.where(done, 0.0, logprob)
        count += ~done
        done |= jnp.any(token[:, None] == stops, axis=-1) | (count >= limit)
        return (
            step + 1,
            transformer.decode_step(weights, cfg, token, cache),
            done,
            tokens.at[:, step].set(token),
            logprobs.at[:, step].set(logprob),
            count,
        )

    shared = (jnp.repeat(hidden, group_size, axis=0), _share(cache, group_size, capacity, cfg))
    tokens, logprobs = jnp.zeros((b, capacity), jnp.int32), jnp.zeros((b, capacity), jnp.float32)
    count = jnp.zeros(b, jnp.int32)
    start = (jnp.int32(0), shared, jnp.zeros(b, bool), tokens, logprobs, count)
    *_, tokens, logprobs, count = jax.lax.while_loop(continues, body, start)
    return tokens, logprobs, count


def _share(cache: Cache, group_size: int, capacity: int, cfg: ModelConfig) -> Cache:
    """Returns the prompts' cache for every member of their groups, with room for completions."""

    room = [(0, 0)] * 4
    room[transformer.slot_axis(cfg)] = (0, capacity)

    def one(x: _Array) -> _Array:
        return rules.constrain(jnp.repeat(jnp.pad(x, room), group_size, axis=0), cache_axes(cfg))

    return Cache(
        keys=tuple(one(k) for k in cache.keys),
        values=tuple(one(v) for v in cache.values),
        length=jnp.repeat(cache.length, group_size),
    )
