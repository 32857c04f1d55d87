"""A scan over stacked layers, and one whose backward pass adds up gradients in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

# Activations, a layer's share of what is scanned, what all layers share -> activations.
Layer = Callable[[jax.Array, Any, Any], jax.Array]


def run(layer: Layer, x: jax.Array, scanned: Any, context: Any) -> jax.Array:
    """Returns what `x` becomes through all layers; `scanned` has a leading axis of layers."""
    return jax.lax.scan(lambda x, s: (layer(x, s, context), None), x, scanned)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_into(layer: Layer, x: jax.Array, scanned: Any, context: Any, gradients: Any) -> jax.Array:
    """Returns what `run` does. The gradient by `gradients` is their sum with the layers' own.

    `scanned` is a tuple whose first part, the weights, has the gradients' structure; it and
    `context` get no gradient. Summed where they are, gradients of several microbatches take the
    memory of one; autodiff of a scan makes each microbatch's whole before it is added.
    """
    del gradients
    return run(layer, x, scanned, context)


def _forward(
    layer: Layer, x: jax.Array, scanned: Any, context: Any, gradients: Any
) -> tuple[jax.Array, Any]:
    out, inputs = jax.lax.scan(lambda x, s: (layer(x, s, context), x), x, scanned)
    return out, (inputs, scanned, context, gradients)


def _backward(layer: Layer, saved: Any, g: jax.Array) -> tuple[jax.Array, None, None, Any]:
    inputs, scanned, context, gradients = saved
    count = inputs.shape[0]

    def one(done: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        g, gradients = carry
        i = count - 1 - done

        def at(stacked: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(stacked, i, keepdims=False)

        weights, *rest = jax.tree.map(at, scanned)
        _, pull = jax.vjp(lambda x, w: layer(x, (w, *rest), context), at(inputs), weights)
        g, added = pull(g)
        gradients = jax.tree.map(
            lambda total, new: jax.lax.dynamic_update_index_in_dim(total, at(total) + new, i, 0),
            gradients,
            added,
        )
        return g, gradients

    g, gradients = jax.lax.fori_loop(0, count, one, (g, gradients))
    return g, None, None, gradients


run_into.defvjp(_forward, _backward)
