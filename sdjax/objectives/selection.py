"""Selects the k largest entries of a vocabulary without sorting it.

A divergence over the top k needs the set of entries, not their order. A sort of 150,000 logits
costs ten times the matrix product that computes them. So the selection takes the maximum of each
block of neighbours: the k blocks with the largest maxima hold the k largest entries, and only these
blocks are sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Selection:
    """The k largest entries of each row: those over the threshold, and the first that equal it."""

    threshold: jax.Array  # float[...], the k-th largest value
    last: jax.Array  # int32[...], the last entry equal to the threshold that is selected


def top_k(x: jax.Array, k: int) -> Selection:
    """Returns the k largest of x [..., V]; among equal values the first ones, like `lax.top_k`."""
    size = x.shape[-1]
    block = max(1 << round(math.log2(math.sqrt(size / k))), 1) if k < size else 1
    count = size // block
    if block == 1 or count <= k:
        return _kth(x, jnp.broadcast_to(jnp.arange(size), x.shape), k)
    blocks = x[..., : count * block].reshape(*x.shape[:-1], count, block)
    # In ascending order, because the sort below then meets the first of equal values first.
    chosen = jnp.sort(jax.lax.top_k(jnp.max(blocks, axis=-1), k)[1], axis=-1)
    values = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)
    entries = chosen[..., None] * block + jnp.arange(block)
    flat = (*x.shape[:-1], k * block)
    rest = jnp.arange(count * block, size)
    return _kth(
        jnp.concatenate([values.reshape(flat), x[..., count * block :]], axis=-1),
        jnp.concatenate(
            [entries.reshape(flat), jnp.broadcast_to(rest, (*x.shape[:-1], rest.size))], axis=-1
        ),
        k,
    )


def _kth(values: jax.Array, entries: jax.Array, k: int) -> Selection:
    """Returns the selection, given candidates in ascending order of their entries."""
    best, place = jax.lax.top_k(values, min(k, values.shape[-1]))
    last = jnp.take_along_axis(entries, place[..., -1:], axis=-1)[..., 0]
    return Selection(threshold=best[..., -1], last=last.astype(jnp.int32))


def selected(x: jax.Array, selection: Selection) -> jax.Array:
    """Returns bool[..., V]: which entries of `x` its selection holds."""
    entry = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    threshold = selection.threshold[..., None]
    tied = (x == threshold) & (entry <= selection.last[..., None])
    return (x > threshold) | tied
