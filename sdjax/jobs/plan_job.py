"""Plans a training: whether it fits a slice, how long its steps take, what they cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.bench import subject
from sdjax.config.load import load, with_changes
from sdjax.errors import TooLarge, UserError
from sdjax.io import run_dir
from sdjax.io.files import write_text
from sdjax.models.files import published
from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel import hosts
from sdjax.parallel import mesh as meshes
from sdjax.plan import memory, plan_table, programs, search, seconds, slices, workload
from sdjax.plan.programs import Compiled
from sdjax.plan.search import Candidate
from sdjax.plan.slices import Slice
from sdjax.plan.workload import Workload


def run(cfg: config.Plan) -> None:
    """Prints a page for every training and topology, and writes plan.md and plan.json.

    Raises TooLarge after all of them if a training does not fit its slice.
    """
    # Planning needs no accelerator, so none is initialised even if the machine has one.
    jax.config.update("jax_platforms", "cpu")
    planned = [_Planned.of(cfg, file, topology) for file in cfg.train for topology in cfg.topology]
    if any(one.compiles for one in planned):
        programs.require_compiler()
    folder = run_dir.claim(cfg.out, cfg, resume=True)
    with run_dir.pushed(folder):
        too_large = _write_plans(cfg, planned, folder.local)
    if too_large:
        raise TooLarge("; ".join(too_large))


def _write_plans(cfg: config.Plan, planned: Sequence[_Planned], out: Path) -> list[str]:
    """Writes plan.md and plan.json after each plan; returns what does not fit, and why."""
    pages, plans, too_large = [], [], []
    for one in planned:
        plan = _search(one) if cfg.search else _as_it_stands(one)
        if plan is None:
            quickly = f" with steps of {cfg.most_step_s:g} s" if cfg.most_step_s else ""
            too_large.append(
                f"topology is {one.piece.name!r}: no slice up to it holds {one.file}{quickly}; "
                "without --search the plan says what takes the memory"
            )
            continue
        if not plan.fits:
            too_large.append(f"{one.file} does not fit {one.piece.name}: see {out / 'plan.md'}")
        elif plan.needs:
            too_large.append(f"{one.file} on {one.piece.name} needs {' '.join(plan.needs)}")
        pages.append(plan_table.to_markdown(plan, cfg, one.file, one.name))
        plans.append((one.file, plan))
        hosts.note(pages[-1])
        # Written after each plan, because the next one may take an hour.
        table = plan_table.summary(plans, cfg)
        write_text(out / "plan.md", "\n".join([*pages, table]))
        rows = [plan_table.to_dict(each, cfg, file) for file, each in plans]
        write_text(out / "plan.json", json.dumps({"plans": rows}, indent=2) + "\n")
    if len(plans) > 1:
        hosts.note(table)
    return too_large


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A training and a slice, read and checked."""

    file: str
    name: str
    """The name of the model."""
    train: config.Train
    model: ModelConfig
    piece: Slice
    means: tuple[float, float]
    """Mean tokens per prompt and per completion."""
    is_bench: bool
    compiles: bool
    every_layer: bool
    most_step_s: float

    @classmethod
    def of(cls, cfg: config.Plan, file: str, topology: str) -> _Planned:
        """Returns the training of a file on a slice of this topology; raises UserError."""
        job, piece = training(file, cfg.change), _piece(cfg, topology)
        how = replace(job.model, attention=_attention(job.model, piece))
        job = replace(job, model=how)
        if isinstance(job, config.Bench):
            train, model = _training_of(job, max(job.prompts)), subject.model_config(job)
            mean, name = float(job.completion_tokens), how.path
            if job.weights == "random":
                name = f"random {job.shape.model_type}"
        else:
            train, model = job, model_config(job)
            mean, name = train.rollout.max_completion_tokens / 2, how.path
        return cls(
            file=file,
            name=name,
            train=train,
            model=model,
            piece=piece,
            means=(cfg.prompt_tokens, cfg.completion_tokens or mean),
            is_bench=isinstance(job, config.Bench),
            compiles=cfg.compile and piece.chip.is_tpu,
            every_layer=cfg.every_layer,
            most_step_s=cfg.most_step_s,
        )


def _training_of(cfg: config.Bench, prompts: int) -> config.Train:
    """Returns the training whose step a bench measures."""
    return config.Train(
        out=cfg.out,
        task=config.TaskConfig(),
        rollout=config.Rollout(
            prompts_per_step=prompts,
            group_size=cfg.group_size,
            max_prompt_tokens=cfg.prompt_tokens,
            max_completion_tokens=cfg.completion_tokens,
        ),
        model=cfg.model,
        reprompt=config.Reprompt(max_tokens=cfg.reprompt_tokens),
        lora=cfg.lora,
        teacher=cfg.teacher,
        loss=cfg.loss,
        policy=cfg.policy,
        optim=cfg.optim,
        mesh=cfg.mesh,
    )


def training(file: str, change: Sequence[str] = ()) -> config.Train | config.Bench:
    """Returns the training, or the bench of its step, with the changes `section.field=value`.

    Raises UserError for a file of another job.
    """
    job = load(Path(file))
    if not isinstance(job, config.Train | config.Bench):
        raise UserError(f"train is {file!r}: binds a {type(job).__name__}, not a Train or a Bench")
    changed = with_changes(job, change, prog=file)
    assert isinstance(changed, config.Train | config.Bench)
    return changed


def model_config(train: config.Train) -> ModelConfig:
    """Returns the model of a training, from its config.json alone."""
    source = train.model
    runtime = {
        "compute_dtype": source.compute_dtype,
        "remat": source.remat,
        "attention": source.attention,
        "lora": train.lora if train.lora.rank else None,
        "context": source.context,
    }
    return published.config_of(source.path, source.revision, "model.path", **runtime)


def _attention(source: config.Model, piece: Slice) -> Any:
    """Returns the attention that runs on the chip: a TPU has splash for auto."""
    on_tpu = source.attention == "auto" and piece.chip.is_tpu
    return "splash" if on_tpu else source.attention


def _piece(cfg: config.Plan, topology: str) -> Slice:
    """Returns a slice; a search by the name of a chip gets its largest one."""
    chip = slices.named(topology) if cfg.search else None
    if chip is not None:
        return Slice(chip=chip, shape=chip.shapes[-1], count=cfg.slices)
    return slices.parse(topology, cfg.slices)


def _as_it_stands(one: _Planned) -> plan_table.Found:
    """Returns the plan of the config on the slice, with the mesh and microbatch of the config."""
    train, piece = one.train, one.piece
    sizes = meshes.sizes(train.mesh, piece.devices)
    mesh = workload.MeshSizes.of(sizes, train.mesh.rollout_tensor)
    train, needs = _divided(train, mesh)
    w = workload.make(
        train,
        one.model,
        mesh,
        slots=train.rollout.slots,
        mean_prompt=one.means[0],
        mean_completion=one.means[1],
    )
    if not w.slots:
        fit = min(memory.slots_that_fit(w, piece.chip.memory), workload.most_slots(w))
        w = replace(w, slots=max(fit, mesh.copies))
    found = _estimated(w, piece, _compiled(one, w, piece) if one.compiles else None)
    return replace(found, needs=needs)


def _divided(train: config.Train, mesh: workload.MeshSizes) -> tuple[config.Train, tuple[str, ...]]:
    """Returns the training with the next microbatch that the mesh divides, and it as argument.

    Returns the training as it is, and no argument, where the mesh divides its microbatch.
    """
    given = train.optim.microbatch
    micro = -(-given // mesh.batch_shards) * mesh.batch_shards
    if micro == given:
        return train, ()
    try:
        return replace(train, optim=replace(train.optim, microbatch=micro)), (
            f"--optim.microbatch {micro}",
        )
    except UserError as error:
        raise UserError(
            f"optim.microbatch is {given}: must be a multiple of {mesh.batch_shards} on a mesh of "
            f"{mesh}, but {error}; change mesh or rollout.prompts_per_step"
        ) from None


def _search(one: _Planned) -> plan_table.Found | None:
    """Returns the plan of the fastest layout on the smallest slice; None if no slice fits."""
    largest = one.piece
    pieces = [
        replace(piece, count=largest.count)
        for piece in slices.ladder(largest.chip)
        if piece.chips * largest.count <= largest.chips
    ]
    plans: list[plan_table.Found] = []

    def holds(candidate: Candidate) -> bool:
        w, piece = candidate.work, candidate.piece
        compiled = None
        if one.compiles:
            hosts.note(f"compiling for {piece.name}: {w.mesh}, microbatch {w.microbatch}")
            try:
                compiled = _compiled(one, w, piece)
            except UserError as error:
                hosts.note(str(error))
                return False
        plans.append(_estimated(w, piece, compiled))
        return plans[-1].fits

    best = search.smallest(
        one.train, one.model, pieces, one.means, holds, most_step_s=one.most_step_s
    )
    if best is None:
        return None
    return replace(plans[-1], chosen=search.as_arguments(best.work, slots=not one.is_bench))


def _compiled(one: _Planned, w: Workload, piece: Slice) -> list[Compiled]:
    """Returns the programs of update and rollout, compiled for the slice."""
    mesh = programs.topology_mesh(piece, w.mesh.shape)
    update = programs.train_step(w, mesh)
    return [update, *programs.rollout(w, mesh, every_layer=one.every_layer)]


def _estimated(w: Workload, piece: Slice, compiled: list[Compiled] | None) -> plan_table.Found:
    """Returns the plan of a workload on a slice: memory, time and compiled programs."""
    return plan_table.Found(
        work=w,
        piece=piece,
        update=memory.update(w, tpu=piece.chip.is_tpu),
        rollout=memory.rollout(w),
        seconds=seconds.by_phase(w, piece, compiled[0].overlap if compiled else None),
        compiled=compiled,
    )
