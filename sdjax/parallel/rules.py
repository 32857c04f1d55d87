"""The one table of shardings, which maps logical axes of arrays to mesh axes; padded sizes."""

from __future__ import annotations

import math

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]

BATCH = ("data", "expert", "fsdp")
HIDDEN: Axes = ("batch", "sequence", None)
"""Logical axes of hidden states [B, S, embed] between sublayers."""

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    # rows of a batch in an array whose other dimension is split over fsdp
    "replica": ("data", "expert"),
    "embed": "fsdp",
    "vocab": "tensor",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "column": "tensor",  # columns of the embedding table of rollouts
    "sequence": "tensor",  # tokens of a row between sublayers; see constrain
    "experts": ("expert", "fsdp"),  # whole matrices are split, where dense ones are split by embed
    "held_experts": "expert",  # the experts that a device computes
    "layers": None,
    "rank": None,  # the rank of adapters
}


def spec(axes: Axes) -> PartitionSpec:
    """Returns the partition of an array whose dimensions have these logical axes.

    Raises ValueError for an unknown axis, and for two dimensions with the same mesh axis.
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
    """Returns `x` with its sharding pinned inside `jax.set_mesh`; returns `x` itself outside it.

    "sequence" splits a dimension only if the mesh axis divides it.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    if "sequence" in axes and x.shape[axes.index("sequence")] % shards("tensor"):
        axes = tuple(None if axis == "sequence" else axis for axis in axes)
    return jax.lax.with_sharding_constraint(x, spec(axes))


def shards(*axes: str) -> int:
    """Returns the number of parts into which these mesh axes split; 1 outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def param_shardings(params: nnx.State, mesh: Mesh) -> nnx.State:
    """Returns the sharding of every leaf of a model's (abstract) params, by its logical axes."""

    def one(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(NamedSharding(mesh, spec(variable.get_metadata()["axes"])))

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def leading(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of an array split along dimension `axis` by the batch rule."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))


def bucket(n: int) -> int:
    """Returns n, padded to one of few sizes, so that a run compiles only a handful of programs.

    The size is a multiple of 32. Above 128 it is at most a quarter more than n, and always less
    than 2,048 more. Without this second bound a row of 43,008 tokens could be a quarter too long,
    which takes the memory of a chip.
    In: 1 32 33 100 300 1000 43008 -> out: 32 32 64 128 320 1024 43008.
    """
    step = min(max(32, 1 << max((n - 1).bit_length() - 3, 0)), 2048)
    return -(-n // step) * step
