"""Gradients summed over an update's microbatches, so that few rows' activations exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.models import lora
from sdjax.models.transformer import trained_layers

Loss = Callable[[nnx.State, lora.Trained | None], tuple[jax.Array, Any]]
"""Params, and the sums that hidden_states adds the layers' gradients to (None: it adds none), to
the loss of a microbatch and what it reports."""


def add_gradient(
    grads: nnx.State,
    params: nnx.State,
    loss: Loss,
    graphdef: nnx.GraphDef,
    *,
    into: bool,
    frozen: nnx.State | None = None,
) -> tuple[nnx.State, Any]:
    """Returns `grads` plus those of `loss` at `params`, and what it reports.

    `loss` gets the whole model's params: `frozen` are those that are not trained. What is trained
    of its layers are their adapters then.

    With `into` the layers' gradients are added in place by hidden_states, which recomputes whole
    layers. Without, there are activations to keep, which the scan's own differentiation knows how
    to.
    """
    at = "layers" if frozen is None else lora.NAME
    rest = {name: part for name, part in params.items() if name != at}

    def of_parts(rest: dict, layers: nnx.State) -> tuple[jax.Array, Any]:
        """With `layers` the parameters, or the sums that their gradients are added to."""
        own = params[at] if into else layers
        with_sums = lora.joined(nnx.State(rest | {at: layers}), frozen)
        sums = trained_layers(nnx.merge(graphdef, with_sums))[0]
        return loss(lora.joined(nnx.State(rest | {at: own}), frozen), sums if into else None)

    start = (grads if into else params)[at]
    (added, layers), reported = jax.grad(of_parts, (0, 1), has_aux=True)(rest, start)
    if not into:
        layers = jax.tree.map(jnp.add, grads[at], layers)
    total = {name: jax.tree.map(jnp.add, grads[name], part) for name, part in added.items()}
    # A State's parts come out of it as States, but were plain dicts in it.
    leaves = jax.tree.leaves(nnx.State(total | {at: layers}))
    return jax.tree.unflatten(jax.tree.structure(grads), leaves), reported


def over_microbatches(
    one: Callable[[Any, Any], tuple[Any, Any]], start: Any, rows: Any, number: jax.Array
) -> tuple[Any, Any]:
    """Returns what `one` carries from microbatch to microbatch, and [M, ...] of what else it gives.

    `rows` is a pytree of arrays [M, ...]; those from `number` on have no completion and are not
    run: their part of the second is 0.
    """
    # Its shapes are asked for before the loop traces it: as a jitted function it is traced once.
    one = jax.jit(one, inline=True)

    def at(i: jax.Array | int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), rows)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        total, stacked = carry
        total, new = one(at(i), total)
        return total, jax.tree.map(lambda x, y: x.at[i].set(y), stacked, new)

    _, new = jax.eval_shape(lambda: one(at(0), start))
    m = jax.tree.leaves(rows)[0].shape[0]
    stacked = jax.tree.map(lambda x: jnp.zeros((m, *x.shape), x.dtype), new)
    return jax.lax.fori_loop(0, number, body, (start, stacked))
