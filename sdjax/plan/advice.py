"""Suggests config changes for a training that does not fit; estimates each change separately."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sdjax.errors import UserError
from sdjax.plan import memory, workload
from sdjax.plan.slices import GPU_SHARE, Slice
from sdjax.plan.workload import Workload

GB = 1e9


def changes(w: Workload, piece: Slice) -> list[str]:
    """Returns config changes as arguments, each with the resulting bytes per chip, fewest bytes
    first.

    Each line says whether the change makes the training fit.
    """
    found, tpu = [], piece.chip.is_tpu
    for text, changed in _ways(w):
        fullest = max(memory.update(changed, tpu=tpu).total, memory.rollout(changed).total)
        before = max(memory.update(w, tpu=tpu).total, memory.rollout(w).total)
        if fullest < 0.99 * before:
            fits = "fits" if fullest <= piece.chip.memory else "does not fit alone"
            found.append((fullest, f"{text}: {fullest / GB:.1f} GB per chip, {fits}"))
    lines = [text for _, text in sorted(found)]
    if not piece.chip.is_tpu:
        lines.append(
            f"XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 in the environment: programs may then fill "
            f"{0.92 / GPU_SHARE * piece.chip.memory / GB:.1f} GB"
        )
    return lines


def _ways(w: Workload) -> Iterator[tuple[str, Workload]]:
    """Yields (argument, changed workload) for each change that may save memory."""
    cfg, mesh = w.cfg, w.mesh
    if w.rows > 1:
        micro = mesh.batch_shards
        yield (
            f"--optim.microbatch {micro}",
            _with(w, optim=replace(cfg.optim, microbatch=micro)),
        )
    if w.model.remat != "full":
        model = replace(w.model, remat="full")
        yield "--model.remat full", _with(w, other=model)
    if cfg.optim.row_tokens:
        shorter = _with(w, optim=replace(cfg.optim, row_tokens=0))
        yield "--optim.row_tokens 0 (a completion a row)", shorter
    if cfg.loss.chunk_tokens > 512:
        yield (
            "--loss.chunk_tokens 512",
            _with(w, loss=replace(cfg.loss, chunk_tokens=512)),
        )
    if cfg.teacher.kind in ("initial", "trust_region", "model"):
        if cfg.teacher.location == "device":
            host = replace(cfg.teacher, location="host")
            yield "--teacher.location host (in rollouts)", _with(w, teacher=host)
        if cfg.teacher.dtype == "float32" and cfg.teacher.kind != "model":
            half = replace(cfg.teacher, dtype="bfloat16")
            yield "--teacher.dtype bfloat16", _with(w, teacher=half)
    yield from _meshes(w)
    for slots in (w.slots // 2, w.slots // 4):
        if slots and slots % mesh.copies == 0:
            yield f"--rollout.slots {slots}", replace(w, slots=slots)


def _meshes(w: Workload) -> Iterator[tuple[str, Workload]]:
    """Yields meshes of the same chips with a larger tensor axis, and so fewer rows at a time."""
    mesh = w.mesh
    for tensor in (2 * mesh.tensor, 4 * mesh.tensor):
        if mesh.fsdp % (tensor // mesh.tensor) == 0:
            other = replace(mesh, fsdp=mesh.fsdp * mesh.tensor // tensor, tensor=tensor)
            micro = max(w.cfg.optim.microbatch * mesh.tensor // tensor, other.batch_shards)
            optim = replace(w.cfg.optim, microbatch=micro)
            text = f"--mesh.fsdp {other.fsdp} --mesh.tensor {tensor} --optim.microbatch {micro}"
            try:
                yield text, _with(w, mesh=other, optim=optim)
            except UserError:
                continue


def _with(w: Workload, *, mesh=None, other=None, **sections) -> Workload:
    """Returns the workload with sections of the config, the mesh or the model replaced."""
    return workload.make(
        replace(w.cfg, **sections),
        other or w.model,
        mesh or w.mesh,
        slots=w.slots,
        mean_prompt=w.mean_prompt,
        mean_completion=w.mean_completion,
    )
