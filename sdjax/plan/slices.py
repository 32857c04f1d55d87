"""The kinds of chips, and the slices that a cloud offers of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sdjax.bench import peaks
from sdjax.errors import UserError

GIB = 1 << 30
# Share of a GPU's memory that XLA reserves, unless XLA_PYTHON_CLIENT_MEM_FRACTION changes it.
GPU_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device: its name in jax, its memory and its link speeds."""

    name: str
    kind: str
    """jax's device_kind; bench/peaks.py lists rates by it."""
    memory: float
    """Bytes that programs can use."""
    links: float
    """Bytes per second that the chip receives from its slice, over all links."""
    network: float
    """Bytes per second that the chip receives from other slices or hosts."""
    shapes: tuple[str, ...]
    """Available slices, smallest first; for a GPU, numbers of GPUs."""

    @property
    def is_tpu(self) -> bool:
        """Whether programs can be compiled for the chip on a machine without it."""
        return self.kind.startswith("TPU")

    @property
    def rates(self) -> peaks.Peaks:
        """The chip's operations and bytes per second."""
        return peaks.known(self.kind)


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_GPUS = ("1", "2", "4", "8", "16", "32", "64")


def _tpu(name: str, kind: str, gib: float, links: float, network: float, shapes: tuple) -> Chip:
    # Half, because spec sheets count both directions of a link.
    return Chip(
        name=name,
        kind=kind,
        memory=gib * GIB,
        links=links / 2,
        network=network,
        shapes=shapes,
    )


def _gpu(name: str, kind: str, gib: float, links: float) -> Chip:
    return Chip(
        name=name,
        kind=kind,
        memory=GPU_SHARE * gib * GIB,
        links=links / 2,
        network=50e9,
        shapes=_GPUS,
    )


# A TPU's memory is what its compiler allows programs to fill. A GPU's memory is what its driver
# shows, times GPU_SHARE. Rates of links and networks are the vendors' peak rates (Cloud TPU system
# architecture; NVLink 3 and 4), which no program reaches.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 30.75, 600e9, 3.1e9, _CUBES),
        _tpu("v5e", "TPU v5e", 15.75, 400e9, 3.1e9, _FLAT),
        _tpu("v5p", "TPU v5p", 95.74, 1200e9, 6.25e9, _CUBES),
        _tpu("v6e", "TPU v6e", 31.25, 800e9, 12.5e9, _FLAT),
        _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 39.4, 600e9),
        _gpu("a100-80", "NVIDIA A100-SXM4-80GB", 79.3, 600e9),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 79.6, 900e9),
        _gpu("h200", "NVIDIA H200", 139.8, 900e9),
    )
}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips of one kind that work as one; `count` slices are joined by the network."""

    chip: Chip
    shape: str
    count: int = 1

    @property
    def chips(self) -> int:
        """Number of chips over all slices."""
        return self.count * math.prod(map(int, self.shape.split("x")))

    @property
    def name(self) -> str:
        """A name such as v5p:4x4x4, or 2 x v5p:4x4x4."""
        one = f"{self.chip.name}:{self.shape}"
        return one if self.count == 1 else f"{self.count} x {one}"


def parse(topology: str, count: int = 1) -> Slice:
    """Returns the slice of a name such as v5p:4x4x4, v6e:8x8 or h100:8.

    Raises UserError, with the known chips or an example, if the name is none.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise UserError(
            f"topology is {topology!r}: must be CHIP:SHAPE, with a chip of {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    example = f"{name}:{chip.shapes[min(2, len(chip.shapes) - 1)]}"
    number = r"[1-9]\d*"
    if not re.fullmatch(f"{number}(x{number}){{1,2}}" if chip.is_tpu else number, shape):
        raise UserError(f"topology is {topology!r}: must be such as {example}")
    return Slice(chip=chip, shape=shape, count=count)


def ladder(chip: Chip) -> list[Slice]:
    """Returns the slices of a chip, smallest first."""
    return [Slice(chip=chip, shape=shape) for shape in chip.shapes]
