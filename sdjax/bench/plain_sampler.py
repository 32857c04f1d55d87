"""The plain loop: one batch, decoded until its last completion ends.

Tests compare the engine with it, and a bench measures the engine against it. No job uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Cache, DecodeWeights
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN
from sdjax.rollout.engine.slots import DecodeSetup, Settings, cache_axes, draw

_Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """P prompts of one batch and the limits of their B = P x group_size completions."""

    tokens: _Array  # int32[P, S], padded on the right
    length: _Array  # int32[P]
    limit: _Array  # int32[B], at most the capacity


def make(
    cfg: ModelConfig, *, stop_ids: tuple[int, ...], pad_id: int
) -> Callable[..., tuple[_Array, _Array, _Array]]:
    """Returns `_generate` for a model, jitted; group_size and capacity are static."""
    setup = DecodeSetup(cfg=cfg, stops=jnp.asarray(stop_ids, jnp.int32), pad_id=pad_id)
    return jax.jit(
        partial(_generate, setup=setup),
        static_argnames=("group_size", "capacity"),
        compiler_options=AS_WRITTEN,
    )


def _generate(
    weights: DecodeWeights,
    prompts: PromptRows,
    key: _Array,
    how: Settings,
    *,
    group_size: int,
    capacity: int,
    setup: DecodeSetup,
) -> tuple[_Array, _Array, _Array]:
    """Returns tokens int32[B, T], log-probabilities float32[B, T] and counts int32[B].

    Args:
        weights: the model.
        prompts: the batch.
        key: token t of completion i draws with fold_in(fold_in(key, i), t).
        how: temperature, top-p and top-k.
        group_size: completions per prompt.
        capacity: T, room for a completion.
        setup: sizes and special tokens.
    """
    cfg, b = setup.cfg, prompts.tokens.shape[0] * group_size
    hidden, cache = transformer.prefill(weights, cfg, prompts.tokens, prompts.length)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(b))

    def continues(state: tuple) -> _Array:
        return ~jnp.all(state[2])

    def body(state: tuple) -> tuple:
        step, (hidden, cache), done, tokens, logprobs, count = state
        logits = transformer.logits(hidden, weights.head)
        token, logprob = draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), how)
        token, logprob = jnp.where(done, setup.pad_id, token), jnp.where(done, 0.0, logprob)
        count += ~done
        done |= jnp.any(token[:, None] == setup.stops, axis=-1) | (count >= prompts.limit)
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
    """Returns the prompts' cache, one copy per member of a group, with room for completions."""
    room = [(0, 0)] * 4
    room[transformer.slot_axis(cfg)] = (0, capacity)

    def one(x: _Array) -> _Array:
        return rules.constrain(jnp.repeat(jnp.pad(x, room), group_size, axis=0), cache_axes(cfg))

    return Cache(
        keys=tuple(one(k) for k in cache.keys),
        values=tuple(one(v) for v in cache.values),
        length=jnp.repeat(cache.length, group_size),
    )
