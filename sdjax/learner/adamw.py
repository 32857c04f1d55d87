"""Runs AdamW as the references do: clip, Adam, decoupled decay; the rate depends on the step."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sdjax.config import Optim
from sdjax.learner.state import TrainState


def make(cfg: Optim) -> optax.GradientTransformation:
    """Returns the transformation of clipped gradients into updates, before the learning rate."""
    return optax.chain(
        optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay),
    )


def apply(
    state: TrainState,
    grads: nnx.State,
    cfg: Optim,
    loss: jax.Array,
    divisor: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after an update by float32 gradients, and the metrics optim/...

    Where the loss or the norm of the gradients before clipping is not finite, parameters and
    moments stay as they are. Matrices of layers are updated in place, layer by layer, because the
    update of all layers at once needs memory: 7 GB for 1.7B parameters.

    Args:
        state: The state before.
        grads: The gradients, shaped as the trained parameters.
        cfg: Rates, clipping and decay.
        loss: The loss, a scalar.
        divisor: What the gradients are divided by first, a scalar; None: nothing.
    """
    tx, lr, params = make(cfg), learning_rate(state.step, cfg), state.params
    norm = optax.tree.norm(grads)
    if divisor is not None:
        norm /= divisor
    ok = jnp.isfinite(norm) & jnp.isfinite(loss)
    scale = jnp.where(norm > cfg.clip_norm, cfg.clip_norm / norm, 1.0)
    if divisor is not None:
        scale /= divisor
    adam, *rest = state.opt_state

    def whole(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        moments = (optax.ScaleByAdamState(count=adam.count, mu=m, nu=v), *rest)
        update, (new, *_) = tx.update(g * scale, moments, p)
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
    metrics = {
        "optim/grad_norm": norm,
        "optim/skipped": 1.0 - ok.astype(jnp.float32),
        "optim/lr": lr,
    }
    opt_state = (optax.ScaleByAdamState(count=count, mu=mu, nu=nu), *rest)
    return replace(state, params=params, opt_state=opt_state), metrics


def learning_rate(step: jax.Array, cfg: Optim) -> jax.Array:
    """Returns the rate of step `step`, from 0: linear warm-up, constant, linear decay.

    All updates of a step share it, as in the reference. warmup_from="zero" is the schedule of the
    reference: its first step has rate 0. The reference has no decay.
    """
    share = jnp.asarray(1.0, jnp.float32)
    if cfg.warmup_steps:
        done = step + (1 if cfg.warmup_from == "first" else 0)
        share = jnp.minimum(done / cfg.warmup_steps, 1.0)
    if cfg.decay:
        first, last = cfg.decay
        share *= jnp.clip((last - step) / (last - first), 0.0, 1.0)
    return cfg.lr * share
