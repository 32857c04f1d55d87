"""The smallest slice of a chip and the best mesh, microbatch and slots on it. By arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sdjax import config
from sdjax.errors import UserError
from sdjax.models.network.model_config import ModelConfig
from sdjax.plan import memory, seconds, workload
from sdjax.plan.slices import Slice
from sdjax.plan.workload import MeshSizes, Workload

ROWS = (1, 2, 4, 8, 16, 32)
"""Rows of a microbatch that a shard may have."""
TENSOR = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to run the training on a slice."""

    work: Workload
    piece: Slice
    seconds: float
    """Of a step."""


def candidates(
    cfg: config.Train, model: ModelConfig, piece: Slice, means: tuple[float, float]
) -> list[Candidate]:
    """Returns what fits the slice, the fastest first; ties go to the simplest mesh."""
    found = [
        Candidate(work=w, piece=piece, seconds=sum(seconds.by_phase(w, piece).values()))
        for w in _all(cfg, model, piece, means)
        if seconds.fits(w, piece)
    ]
    return sorted(found, key=lambda c: (c.seconds, c.work.mesh.tensor, c.work.mesh.data))


def smallest(
    cfg: config.Train,
    model: ModelConfig,
    pieces: list[Slice],
    means: tuple[float, float],
    holds: Callable[[Candidate], bool],
    *,
    most_step_s: float = 0.0,
    tries: int = 3,
) -> Candidate | None:
    """Returns the fastest way on the smallest slice on which one is found that `holds`.

    Of a slice's ways by arithmetic the fastest `tries` are asked, those whose step takes at most
    `most_step_s` seconds (0: any). None: no slice will do.
    """
    for piece in pieces:
        for candidate in candidates(cfg, model, piece, means)[:tries]:
            quick = candidate.seconds <= (most_step_s or candidate.seconds)
            if quick and holds(candidate):
                return candidate
    return None


def _all(
    cfg: config.Train, model: ModelConfig, piece: Slice, means: tuple[float, float]
) -> Iterator[Workload]:
    for mesh in _meshes(piece):
        for rows in ROWS:
            optim = replace(cfg.optim, microbatch=rows * mesh.batch_shards)
            try:
                changed = replace(
                    cfg,
                    optim=optim,
                    rollout=replace(cfg.rollout, slots=0),
                    mesh=as_config(mesh),
                )
                w = workload.make(
                    changed, model, mesh, slots=0, mean_prompt=means[0], mean_completion=means[1]
                )
            except UserError:  # the mesh divides neither the model nor the batch
                continue
            most = min(memory.slots_that_fit(w, piece.chip.memory), workload.most_slots(w))
            if most >= mesh.copies:
                yield replace(w, slots=most - most % mesh.copies)


def _meshes(piece: Slice) -> Iterator[MeshSizes]:
    """Yields the meshes of a slice: parameters split over all its chips, data over slices."""
    for tensor in TENSOR:
        chips = piece.chips // piece.count
        if chips % tensor:
            continue
        for rollout in TENSOR:
            if rollout >= tensor and piece.chips % rollout == 0:
                yield MeshSizes(
                    data=piece.count,
                    fsdp=chips // tensor,
                    tensor=tensor,
                    rollout_tensor=rollout if rollout != tensor else 0,
                )


def as_config(mesh: MeshSizes) -> config.Mesh:
    """Returns the section that asks for the mesh."""
    return config.Mesh(
        data=mesh.data,
        fsdp=mesh.fsdp,
        tensor=mesh.tensor,
        rollout_tensor=mesh.rollout_tensor,
    )
