"""Rows split over devices by the batch rule: each works on its own, sums go over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sdjax.parallel import rules


def axes() -> tuple[str, ...]:
    """Returns the axes of the mesh in use that split rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(a for a in rules.BATCH if mesh.shape.get(a, 1) > 1)


def on_shards(
    f: Callable[..., Any], hidden: jax.Array, head: jax.Array, tokens: Any, heads: Any, out: Any
) -> Any:
    """Returns `f` of each device's own rows [r, C, ...], heads whole and in the compute dtype.

    `hidden` is [R, C, D], `head` [D, V] or [V, D]; `tokens` and `heads` are pytrees of arrays like
    them. `out` are the PartitionSpecs of what `f` returns. The axes that split rows are manual in
    it; the vocabulary's is left to the compiler.
    """
    head, heads = jax.tree.map(lambda w: w.astype(hidden.dtype), (head, heads))
    if not axes():
        return f(hidden, head, tokens, heads)
    rows, whole = PartitionSpec(axes()), PartitionSpec()
    return jax.shard_map(
        f,
        in_specs=(rows, whole, rows, whole),
        out_specs=out,
        axis_names=set(axes()),
        check_vma=False,
    )(hidden, head, tokens, heads)


def psum(x: jax.Array) -> jax.Array:
    """Returns the sum over shards of the batch of any array, in a function on_shards."""
    return jax.lax.psum(x, axes()) if axes() else x


def psum_head(head_grad: jax.Array, embed_axis: int) -> jax.Array:
    """Returns the sum over shards of the batch of a head's gradients, float32[D, V] or [V, D], of
    which each of fsdp keeps its part of D, axis `embed_axis`."""
    by = axes()

    def shard(x: jax.Array) -> jax.Array:
        if "fsdp" in by:
            x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=embed_axis, tiled=True)
        rest = tuple(a for a in by if a != "fsdp")
        return jax.lax.psum(x, rest) if rest else x

    vocab = rules.RULES["vocab"]
    if not by or jax.sharding.get_abstract_mesh().shape.get(vocab, 1) == 1:
        return shard(head_grad)
    # The vocabulary's axis is the compiler's in here, and of such an array it scatters no sum: it
    # would gather the vocabulary, sum whole gradients for all and then keep the parts.
    parts = PartitionSpec(vocab) if embed_axis == 1 else PartitionSpec(None, vocab)
    return jax.shard_map(
        shard, in_specs=parts, out_specs=parts, axis_names={vocab}, check_vma=False
    )(head_grad)


def head_spec(embed_axis: int) -> PartitionSpec:
    """Returns how what psum_head returns is split over the axes that split rows."""
    return PartitionSpec(*[None] * embed_axis, "fsdp" if "fsdp" in axes() else None)
