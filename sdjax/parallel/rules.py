"""The one table that says how arrays are split: logical axis -> mesh axes."""

from __future__ import annotations

import math

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]

BATCH = ("data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "replica": "data",  # rows of a batch where fsdp splits another dimension
    "embed": "fsdp",
    "vocab": "tensor",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "column": "tensor",  # of the table in which rollouts look tokens up
    "sequence": "tensor",  # tokens of a row between sublayers, where nothing else is split
    "layers": None,
    "rank": None,  # of adapters
}


def spec(axes: Axes) -> PartitionSpec:
    """Returns the partition of an array whose dimensions have these logical axes.

    Raises ValueError for an unknown axis, or where two dimensions want one mesh axis.
    """
    unknown = [a for a in axes if a is not None and a not in RULES]
    if unknown:
        raise ValueError(f"no sharding rule for axis {unknown[0]!r} of {axes}")
    parts = [None if a is None else RULES[a] for a in axes]
    used = [name for part in parts for name in ((part,) if isinstance(part, str) else part or ())]
    if len(set(used)) != len(used):
        raise ValueError(f"two dimensions of {axes} want one mesh axis: {parts}")
    return PartitionSpec(*parts)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Returns `x` with its sharding pinned, inside `jax.set_mesh`; outside it, `x` itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def constrain_hidden(x: jax.Array) -> jax.Array:
    """Returns hidden states [B, S, embed] split by rows, and by tokens where those divide."""
    divides = x.shape[1] % shards("tensor") == 0
    return constrain(x, ("batch", "sequence" if divides else None, None))


def shards(*axes: str) -> int:
    """Returns into how many parts these axes of the mesh cut an array; 1 outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def tokens_on_shard(x: jax.Array) -> int:
    """Returns how many of the tokens of `x` [B, S, ...] one shard of the batch has."""
    return x.shape[0] * x.shape[1] // shards(*BATCH)


def param_shardings(params: nnx.State, mesh: Mesh) -> nnx.State:
    """Returns the sharding of every leaf of a model's (abstract) params, from its `axes`."""

    def one(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(NamedSharding(mesh, spec(variable.get_metadata()["axes"])))

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def leading(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of an array split along dimension `axis` by the batch rule."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))
