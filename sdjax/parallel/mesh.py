"""The device mesh and what must divide by it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sdjax import config
from sdjax.errors import UserError

NAMES = ("data", "fsdp", "tensor")


def sizes(cfg: config.Mesh, devices: int) -> tuple[int, int, int]:
    """Returns the axis sizes for this many devices, the -1 filled in."""
    given = [cfg.data, cfg.fsdp, cfg.tensor]
    known = 1
    for size in given:
        known *= size if size != -1 else 1
    if -1 in given:
        given[given.index(-1)] = max(devices // known, 1)
        known *= max(devices // known, 1)
    if known != devices:
        raise UserError(
            f"mesh is data={cfg.data} fsdp={cfg.fsdp} tensor={cfg.tensor}: "
            f"its product must be the number of devices, {devices}"
        )
    return given[0], given[1], given[2]


def make(cfg: config.Mesh) -> Mesh:
    """Returns the mesh over all devices, with axes data, fsdp, tensor."""
    return over(jax.devices(), sizes(cfg, jax.device_count()))


def over(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> Mesh:
    """Returns the mesh of this shape over devices, those next to each other along its last axes.

    Over several slices the data axis runs from slice to slice first, so that the network between
    them carries one sum of gradients an update; raises UserError where they do not divide it.
    """
    axes = (AxisType.Auto,) * 3
    slices = len({getattr(d, "slice_index", None) for d in devices})
    if slices == 1:
        return jax.make_mesh(shape, NAMES, axis_types=axes, devices=devices)
    data, *rest = shape
    if data % slices:
        raise UserError(f"mesh.data is {data}: must be a multiple of the {slices} slices")
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *rest), (slices, 1, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, NAMES, axis_types=axes)


def for_rollouts(mesh: Mesh, tensor: int = 0) -> Mesh:
    """Returns the mesh of rollouts, over the same devices in the same order.

    Of a copy of the weights over `tensor` devices (0: as many as in training) each has its part
    whole: split over fsdp too, weights would be gathered again and again while decoding.
    """
    tensor = tensor or mesh.shape["tensor"]
    if mesh.size % tensor:
        raise UserError(f"mesh.rollout_tensor is {tensor}: must divide the {mesh.size} devices")
    grid = mesh.devices.reshape(-1, 1, tensor)
    return Mesh(grid, NAMES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
