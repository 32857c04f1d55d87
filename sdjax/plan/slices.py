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
    """A chip: the memory and link speeds of each of its devices, and the slices on offer."""

    name: str
    """The TPU compiler's name for a TPU."""
    kind: str
    """jax's device_kind; bench/peaks.py lists rates by it."""
    devices: int
    """Number of jax devices that a chip is: two for Ironwood."""
    memory: float
    """Bytes that programs can use, per device."""
    links: float
    """Bytes per second that a device receives from its slice, over all links."""
    network: float
    """Bytes per second that a device receives from other slices or hosts."""
    overlap: float
    """Share of an update's exchange that goes on during arithmetic, where nothing is compiled."""
    shapes: tuple[str, ...]
    """Available slices, smallest first; for a GPU, numbers of GPUs."""

    @property
    def is_tpu(self) -> bool:
        """Whether programs can be compiled for the chip on a machine without it."""
        return self.kind.startswith("TPU")

    @property
    def rates(self) -> peaks.Peaks:
        """Operations and bytes per second of a device."""
        return peaks.known(self.kind)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_GPUS = ("1", "2", "4", "8", "16", "32", "64")


def _tpu(
    name: str,
    kind: str,
    gib: float,
    *,
    links: float,
    network: float,
    overlap: float,
    shapes: tuple[str, ...],
    devices: int = 1,
) -> Chip:
    """Returns a TPU; `gib` is of a device, `links` and `network` are of a chip."""
    # Half, because spec sheets count both directions of a link.
    return Chip(
        name=name,
        kind=kind,
        devices=devices,
        memory=gib * GIB,
        links=links / 2 / devices,
        network=network / devices,
        overlap=overlap,
        shapes=shapes,
    )


def _gpu(name: str, kind: str, gib: float, links: float) -> Chip:
    return Chip(
        name=name,
        kind=kind,
        devices=1,
        memory=GPU_SHARE * gib * GIB,
        links=links / 2,
        network=50e9,
        overlap=0.0,  # measured on two H200: docs/scaling.md
        shapes=_GPUS,
    )


# A TPU's memory is what its compiler allows programs to fill. A GPU's memory is what its driver
# shows, times GPU_SHARE. Rates of links and networks are the vendors' peak rates (Cloud TPU system
# architecture; NVLink 3 and 4), which no program reaches.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 30.75, links=600e9, network=3.1e9, overlap=0.0, shapes=_CUBES),
        _tpu("v5e", "TPU v5e", 15.75, links=400e9, network=3.1e9, overlap=0.95, shapes=_FLAT),
        _tpu("v5p", "TPU v5p", 95.74, links=1200e9, network=6.25e9, overlap=0.0, shapes=_CUBES),
        _tpu("v6e", "TPU v6e", 31.25, links=800e9, network=12.5e9, overlap=0.0, shapes=_FLAT),
        _tpu(
            *("tpu7x", "TPU7x", 94.75),
            links=1200e9,
            network=12.5e9,
            overlap=0.0,
            shapes=("1x1x1", *_CUBES),
            devices=2,
        ),
        _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 39.4, 600e9),
        _gpu("a100-80", "NVIDIA A100-SXM4-80GB", 79.3, 600e9),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 79.6, 900e9),
        _gpu("h200", "NVIDIA H200", 139.8, 900e9),
    )
}

OTHER_NAMES = {
    "ironwood": "tpu7x",
    "v7": "tpu7x",
    "v7x": "tpu7x",
    "trillium": "v6e",
    "v5litepod": "v5e",
}
"""Names of chips that people use too."""


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
    def devices(self) -> int:
        """Number of jax devices over all slices; a mesh has as many."""
        return self.chips * self.chip.devices

    @property
    def size(self) -> str:
        """The number of chips and the memory of each, and of what that memory is a share."""
        gb = f"{self.chip.memory / 1e9:.1f} GB"
        chips = f"{self.chips} chip" + "s" * (self.chips > 1)
        if self.chip.devices > 1:
            return f"{chips}, each of {self.chip.devices} devices of {gb}"
        if self.chip.is_tpu:
            return f"{chips} of {gb}"
        whole = self.chip.memory / GPU_SHARE / 1e9
        return (
            f"{chips} of {gb} ({GPU_SHARE:.0%} of {whole:.1f} GB, which is what XLA takes unless "
            "XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise)"
        )

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
    chip = named(name)
    if chip is None:
        raise UserError(
            f"topology is {topology!r}: must be CHIP:SHAPE, such as v5p:2x2x2 or h100:8, with a "
            f"chip of {', '.join(CHIPS)}"
        )
    example = f"{chip.name}:{chip.shapes[3]}"
    # All shapes of a chip have as many numbers as the first.
    if not re.fullmatch(re.sub(r"\d+", r"[1-9]\\d{0,3}", chip.shapes[0]), shape):
        raise UserError(f"topology is {topology!r}: must be such as {example}")
    return Slice(chip=chip, shape=shape, count=count)


def named(name: str) -> Chip | None:
    """Returns the chip of this name, also of an entry of OTHER_NAMES; None if there is none."""
    name = name.lower()
    return CHIPS.get(OTHER_NAMES.get(name, name))


def ladder(chip: Chip) -> list[Slice]:
    """Returns the slices of a chip, smallest first."""
    return [Slice(chip=chip, shape=shape) for shape in chip.shapes]
