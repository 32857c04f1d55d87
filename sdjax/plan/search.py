"""Searches for the smallest slice of a chip, and for the best mesh, microbatch and slots on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from sdjax import config
from sdjax.errors import UserError
from sdjax.models.network.model_config import ModelConfig
from sdjax.plan import memory, seconds, workload
from sdjax.plan.slices import Slice
from sdjax.plan.workload import MeshSizes, Workload

ROWS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows per shard that a microbatch may have."""
TENSOR = (1, 2, 4, 8)
"""Sizes that the tensor axis may have."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run the training on a slice."""

    work: Workload
    piece: Slice
    seconds: float
    """Estimated seconds per step."""


def candidates(
    cfg: config.Train, model: ModelConfig, piece: Slice, means: tuple[float, float]
) -> list[Candidate]:
    """Returns the candidates that fit the slice, fastest first.

    Seconds count by two digits, because the estimate has no more. Among equals, the one that leaves
    most memory in updates is first.
    """
    found = [
        Candidate(work=w, piece=piece, seconds=sum(seconds.by_phase(w, piece).values()))
        for w in _all(cfg, model, piece, means)
        if seconds.fits(w, piece)
    ]
    tpu = piece.chip.is_tpu
    return sorted(
        found, key=lambda c: (float(f"{c.seconds:.2g}"), memory.update(c.work, tpu=tpu).total)
    )


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
    """Returns the fastest candidate on the first slice where one passes `holds`, or None if none
    does.

    Args:
      cfg: the training.
      model: sizes of its model.
      pieces: slices, smallest first.
      means: mean tokens of a prompt and of a completion.
      holds: a check of a candidate, such as compiling it.
      most_step_s: longest allowed step in seconds; 0 allows any.
      tries: candidates of each slice that are checked, fastest first.
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
    """Yields every workload on the slice whose mesh divides the model and the batch."""
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
            except UserError:  # the mesh does not divide the model or the batch
                continue
            most = min(memory.slots_that_fit(w, piece.chip.memory), workload.most_slots(w))
            if most >= mesh.copies:
                yield replace(w, slots=most - most % mesh.copies)


def _meshes(piece: Slice) -> Iterator[MeshSizes]:
    """Yields the meshes of a slice: its devices split parameters, slices are replicas."""
    for tensor in TENSOR:
        devices = piece.devices // piece.count
        if devices % tensor:
            continue
        for rollout in TENSOR:
            if rollout >= tensor and piece.devices % rollout == 0:
                yield MeshSizes(
                    data=piece.count,
                    fsdp=devices // tensor,
                    tensor=tensor,
                    rollout_tensor=rollout if rollout != tensor else 0,
                )


def as_config(mesh: MeshSizes) -> config.Mesh:
    """Returns the config section for the mesh."""
    return config.Mesh(
        data=mesh.data,
        expert=mesh.expert,
        fsdp=mesh.fsdp,
        tensor=mesh.tensor,
        rollout_tensor=mesh.rollout_tensor,
    )


def as_arguments(w: Workload, *, slots: bool) -> str:
    """Returns mesh, microbatch and slots as arguments of a training; a bench has no slots."""
    mesh = as_config(w.mesh)
    values = {f"mesh.{f.name}": getattr(mesh, f.name) for f in fields(mesh)}
    values["optim.microbatch"] = w.microbatch
    if slots:
        values["rollout.slots"] = w.slots
    return " ".join(f"--{name} {value}" for name, value in values.items())
