"""The device mesh, the parts into which it splits a batch, and compiler options."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sdjax import config
from sdjax.errors import UserError
from sdjax.parallel.rules import BATCH

NAMES = ("data", "expert", "fsdp", "tensor")
AXES = (AxisType.Auto,) * len(NAMES)
MeshShape = tuple[int, int, int, int]
"""The sizes of the axes, in the order of NAMES."""

AS_WRITTEN = {"xla_allow_excess_precision": False}
"""Compiler options under which rollouts and training round alike.

With them every cast to bfloat16 in the code stays in the program. By default XLA may drop such a
cast inside a fusion, and it fuses the same layer differently in training and in decoding. On
SmolLM2 in bfloat16 the dropped casts cause a third of the gap between the log-probabilities of
rollouts and training."""


def sizes(cfg: config.Mesh, devices: int) -> MeshShape:
    """Returns the sizes of the axes for this many devices; -1 is replaced.

    Raises UserError where the product is not the number of devices.
    """
    given = [cfg.data, cfg.expert, cfg.fsdp, cfg.tensor]
    known = 1
    for size in given:
        known *= size if size != -1 else 1
    if -1 in given:
        given[given.index(-1)] = max(devices // known, 1)
        known *= max(devices // known, 1)
    if known != devices:
        raise UserError(
            f"mesh is data={cfg.data} expert={cfg.expert} fsdp={cfg.fsdp} tensor={cfg.tensor}: its "
            f" product must be the number of devices, {devices}"
        )
    data, expert, fsdp, tensor = given
    return data, expert, fsdp, tensor


def make(cfg: config.Mesh) -> Mesh:
    """Returns the mesh over all devices, with the axes of NAMES."""
    return over(jax.devices(), sizes(cfg, jax.device_count()))


def over(devices: Sequence[jax.Device], shape: MeshShape) -> Mesh:
    """Returns the mesh of this shape over devices; its last axes join neighbouring devices.

    Over several slices, the data axis runs from slice to slice first, so that the network between
    slices carries one sum of gradients per update. Raises UserError where mesh.data is not a
    multiple of the number of slices.
    """
    slices = len({getattr(d, "slice_index", None) for d in devices})
    if slices == 1:
        # jax.make_mesh refuses, on most TPUs, an axis that is only a part of a side of the slice.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, NAMES, axis_types=AXES)
    data, *rest = shape
    if data % slices:
        raise UserError(f"mesh.data is {data}: must be a multiple of the {slices} slices")
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *rest), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, NAMES, axis_types=AXES)


def for_rollouts(mesh: Mesh, tensor: int = 0) -> Mesh:
    """Returns the mesh of rollouts, over the same devices in the same order.

    Each copy of the weights is split over `tensor` devices (0: as many as in training). It is not
    split over expert or fsdp, because every decoding step would then gather tokens or weights.
    Raises UserError where `tensor` does not divide the devices.
    """
    tensor = tensor or mesh.shape["tensor"]
    if mesh.size % tensor:
        raise UserError(f"mesh.rollout_tensor is {tensor}: must divide the {mesh.size} devices")
    grid = mesh.devices.reshape(-1, 1, 1, tensor)
    return Mesh(grid, NAMES, axis_types=AXES)


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts into which the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)
