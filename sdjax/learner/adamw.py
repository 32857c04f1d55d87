"""AdamW as the references run it: clip, Adam, decoupled decay; the rate follows steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdjax.config import Optim

Params = Any


def make(cfg: Optim) -> optax.GradientTransformation:
    """Returns clipped gradients -> updates before the learning rate, as `apply` uses them."""
    return optax.chain(
        optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay),
    )


def apply(
    params: Params,
    opt_state: optax.OptState,
    grads: Params,
    lr: jax.Array,
    cfg: Optim,
    loss: jax.Array,
) -> tuple[Params, optax.OptState, jax.Array]:
    """Returns parameters and state after an update, and the norm of the gradients before clipping.

    Where the norm or the loss is not finite, parameters and state are those given. Matrices of
    layers are updated in place, layer by layer, because the update of all layers at once needs
    memory: 7 GB for 1.7B parameters.

    Args:
        params: The trained parameters.
        opt_state: The state of `make`.
        grads: The gradients, float32, shaped like `params`.
        lr: The learning rate.
        cfg: The config of the optimizer.
        loss: The loss of the update.
    """
    tx = make(cfg)
    norm = optax.tree.norm(grads)
    ok = jnp.isfinite(norm) & jnp.isfinite(loss)
    scale = jnp.where(norm > cfg.clip_norm, cfg.clip_norm / norm, 1.0)
    adam, *rest = opt_state

    def whole(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        state = (optax.ScaleByAdamState(count=adam.count, mu=m, nu=v), *rest)
        update, (new, *_) = tx.update(g * scale, state, p)
        pairs = ((p - lr * update, p), (new.mu, m), (new.nu, v))
        return tuple(jnp.where(ok, after, before) for after, before in pairs)

    def array(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        is_stack = p.ndim > 2  # [layers, inputs, ...]: vectors of layers and tables have two axes
        if not is_stack:
            return whole(p, m, v, g)

        def layer(i: jax.Array, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            at = [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in (*arrays, g)]
            put = jax.lax.dynamic_update_index_in_dim
            return tuple(put(x, new, i, 0) for x, new in zip(arrays, whole(*at), strict=True))

        return jax.lax.fori_loop(0, p.shape[0], layer, (p, m, v))

    updated = jax.tree.map(array, params, adam.mu, adam.nu, grads)
    params, mu, nu = jax.tree.transpose(
        jax.tree.structure(params), jax.tree.structure((0, 0, 0)), updated
    )
    count = jnp.where(ok, optax.safe_increment(adam.count), adam.count)
    return params, (optax.ScaleByAdamState(count=count, mu=mu, nu=nu), *rest), norm


def learning_rate(step: jax.Array, cfg: Optim) -> jax.Array:
    """Returns the rate in loop round `step` (from 0): linear warm-up, constant, linear decay.

    All updates of a round share it, as in the reference; warmup_from="zero" is the reference's
    schedule, whose first round has rate 0. It has no decay.
    """
    share = jnp.asarray(1.0, jnp.float32)
    if cfg.warmup_steps:
        done = step + (1 if cfg.warmup_from == "first" else 0)
        share = jnp.minimum(done / cfg.warmup_steps, 1.0)
    if cfg.decay:
        first, last = cfg.decay
        share *= jnp.clip((last - step) / (last - first), 0.0, 1.0)
    return cfg.lr * share
