"""Gradients summed over an update's microbatches, so that few rows' activations exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.models.network import lora
from sdjax.models.network.transformer import head_matrix, trained_layers


@dataclass(frozen=True, kw_only=True)
class GradientSums:
    """The sums so far of gradients that a loss adds its own to, float32; None: it adds none."""

    layers: lora.Trained | None = None
    """For hidden_states, shaped as the layers' parameters that are trained."""
    head: jax.Array | None = None
    """For token_loss or token_outputs, [D, V] or [V, D] as head_matrix gives a head."""


MicrobatchLoss = Callable[[nnx.State, GradientSums], tuple[jax.Array, Any]]
"""Params and sums to the loss of a microbatch, which must be differentiated as it is (the head's
gradient is in the sums before a factor could reach it), and what it reports."""


def add_gradient(
    grads: nnx.State,
    params: nnx.State,
    loss: MicrobatchLoss,
    graphdef: nnx.GraphDef,
    *,
    into: bool,
    frozen: nnx.State | None = None,
) -> tuple[nnx.State, Any]:
    """Returns `grads` plus those of `loss` at `params`, and what it reports.

    `loss` gets the whole model's params: `frozen` are those that are not trained. What is trained
    of its layers are their adapters then.

    With `into` the layers' gradients are added in place by hidden_states, which recomputes whole
    layers, and the head's by the chunked head: a second set of either never exists, but for the
    head's where rows are split over devices, each of which has its own. Without `into` there are
    activations to keep, which the scan's own differentiation knows how to.
    """
    if not into:

        def alone(params: nnx.State) -> tuple[jax.Array, Any]:
            return loss(lora.joined(params, frozen), GradientSums())

        added, reported = jax.grad(alone, has_aux=True)(params)
        return jax.tree.map(jnp.add, grads, added), reported

    own = dict(params.items())
    head = "head" if "head" in own else "embedding"
    summed = {"layers", head} if frozen is None else {lora.NAME}
    # An embedding that is the head too has a gradient beside its sums: that of looking tokens up.
    others = {name: part for name, part in own.items() if name not in summed - {"embedding"}}

    def of_parts(others: dict, sums: dict) -> tuple[jax.Array, Any]:
        with_sums = nnx.merge(graphdef, lora.joined(nnx.State(own | sums), frozen))
        so_far = GradientSums(
            layers=trained_layers(with_sums)[0],
            head=head_matrix(with_sums) if frozen is None else None,
        )
        return loss(lora.joined(nnx.State(own | others), frozen), so_far)

    sums = {name: grads[name] for name in summed}
    (added, new), reported = jax.grad(of_parts, (0, 1), has_aux=True)(others, sums)
    total = {n: jax.tree.map(jnp.add, new.get(n, grads[n]), part) for n, part in added.items()}
    # A State's parts come out of it as States, but were plain dicts in it.
    leaves = jax.tree.leaves(nnx.State(new | total))
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
