"""The rows, tokens and slots that one training step puts on a mesh."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from sdjax import config
from sdjax.errors import UserError
from sdjax.models.files import published
from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel import mesh as meshes
from sdjax.parallel.rules import bucket
from sdjax.rollout.engine.generation import MOST_SLOTS, Schedule
from sdjax.teacher import contexts

FILLED = 0.87
"""Share of real tokens in packed rows; the rest is padding (dev/log/2026-11-performance.md)."""


@dataclass(frozen=True, kw_only=True)
class MeshSizes:
    """Sizes of the mesh axes, and the number of chips that split one copy of the weights in
    rollouts."""

    data: int
    expert: int = 1
    fsdp: int
    tensor: int
    rollout_tensor: int

    @classmethod
    def of(cls, shape: meshes.MeshShape, rollout_tensor: int) -> MeshSizes:
        """Returns the sizes of a mesh of this shape."""
        return cls(**dict(zip(meshes.NAMES, shape, strict=True)), rollout_tensor=rollout_tensor)

    @property
    def shape(self) -> meshes.MeshShape:
        """The sizes of the axes, as the mesh has them."""
        return self.data, self.expert, self.fsdp, self.tensor

    @property
    def chips(self) -> int:
        """Number of chips in the mesh."""
        return math.prod(self.shape)

    @property
    def batch_shards(self) -> int:
        """Number of parts that rows are split into."""
        return self.data * self.expert * self.fsdp

    @property
    def param_shards(self) -> int:
        """Number of parts that parameters are split into."""
        return self.fsdp * self.tensor

    @property
    def copies(self) -> int:
        """Number of parts that slots are split into during rollouts."""
        return self.chips // self.rollout_tensor if self.rollout_tensor else self.batch_shards

    def __str__(self) -> str:
        names = dict(zip(meshes.NAMES, self.shape, strict=True))
        text = " ".join(f"{k}={v}" for k, v in names.items() if k != "expert" or v > 1)
        return text + (f" rollout_tensor={self.rollout_tensor}" if self.rollout_tensor else "")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The sizes of one training step on a mesh. Widths are padded and are those of the longest
    rows."""

    cfg: config.Train
    model: ModelConfig
    taught_by: tuple[ModelConfig, ...]
    """The models that read the teacher's rows: others with teacher.kind "model", of which each is
    taken to read all rows."""
    mesh: MeshSizes
    prompt: int
    """Tokens of the longest prompt, padded as prefill pads it."""
    student: int
    """Tokens of the student's row."""
    teacher: int
    """Tokens of the teacher's row; 0 if no teacher runs."""
    completion: int
    """Completion tokens of a row."""
    rows: int
    """Rows per microbatch on one shard of the batch."""
    microbatches: int
    """Largest number of microbatches per update."""
    capacity: int
    """Tokens that the cache of a slot holds."""
    slots: int
    """Number of slots over all chips."""
    prefill_rows: int
    """Rows prefilled at the same time, over all shards. The first `prefill_kept` are prompts, the
    others padding."""
    prefill_kept: int
    mean_prompt: float
    mean_completion: float

    @property
    def completions(self) -> int:
        """Completions per step."""
        return self.cfg.rollout.prompts_per_step * self.cfg.rollout.group_size

    @property
    def microbatch(self) -> int:
        """Rows per microbatch, over all shards."""
        return self.cfg.optim.microbatch

    @property
    def teachers(self) -> int:
        """Forward passes over the teacher's rows."""
        read = len(contexts.used(self.cfg))
        return read + (read > 0 and self.cfg.teacher.kind == "trust_region")

    @property
    def mean_reprompt(self) -> float:
        """Mean tokens of a teacher's context: the prompt and a demonstration of mean length."""
        if self.cfg.reprompt.demonstration == "none":
            return self.mean_prompt
        return min(self.mean_prompt + self.mean_completion, self.cfg.reprompt.max_tokens)

    def row_tokens(self, context: float, width: int) -> float:
        """Returns the tokens computed per completion after a context of mean length, including
        padding."""
        if self.cfg.optim.row_tokens == 0:
            return width
        return (context + self.mean_completion) / FILLED


def make(
    cfg: config.Train,
    model: ModelConfig,
    mesh: MeshSizes,
    *,
    slots: int,
    mean_prompt: float,
    mean_completion: float,
) -> Workload:
    """Returns the sizes of a step; raises UserError if the mesh does not divide the batch or the
    model."""
    roll, optim = cfg.rollout, cfg.optim
    shards = mesh.batch_shards
    check(cfg, model, mesh)
    taught_by: tuple[ModelConfig, ...] = (model,)
    if cfg.teacher.kind == "model" and contexts.used(cfg):
        runtime = {"compute_dtype": model.compute_dtype, "attention": model.attention}
        paths = cfg.teacher.paths.values()
        taught_by = tuple(_teacher(path, cfg.teacher.revision, **runtime) for path in paths)
        for teacher in taught_by:
            check(cfg, teacher, mesh)
    completion = roll.max_completion_tokens
    longest = [roll.max_prompt_tokens + completion]
    if read := contexts.used(cfg):
        longest.append(max(section.max_tokens for section in read.values()) + completion)
    if optim.row_tokens:
        limit = max(optim.row_tokens, *longest)
        longest = [limit] * len(longest)
        completion = limit
    update = roll.prompts_per_step * roll.group_size // optim.minibatches
    schedule, width = Schedule(), bucket(roll.max_prompt_tokens)
    prefill = min(max(schedule.prefill_tokens // width, 1), roll.prompts_per_step)
    copies = mesh.copies
    return Workload(
        cfg=cfg,
        model=model,
        taught_by=taught_by,
        mesh=mesh,
        prompt=width,
        student=bucket(longest[0]),
        teacher=bucket(longest[1]) if len(longest) > 1 else 0,
        completion=bucket(completion),
        rows=optim.microbatch // shards,
        microbatches=-(-update // optim.microbatch),
        capacity=bucket(roll.max_prompt_tokens + roll.max_completion_tokens),
        slots=slots,
        prefill_rows=-(-prefill // copies) * copies,
        prefill_kept=prefill,
        mean_prompt=min(mean_prompt, roll.max_prompt_tokens),
        mean_completion=min(mean_completion, roll.max_completion_tokens),
    )


@functools.cache  # because a search makes hundreds of workloads
def _teacher(path: str, revision: str | None, **runtime: Any) -> ModelConfig:
    """Returns the model that teaches, from its config.json alone."""
    found = published.config_of(path, revision, "teacher.path", **runtime)
    return replace(found, frozen=True)


def check(cfg: config.Train, model: ModelConfig, mesh: MeshSizes) -> None:
    """Raises UserError if the mesh does not divide the batch or the model."""
    for name, size, by in (
        ("optim.microbatch", cfg.optim.microbatch, mesh.batch_shards),
        ("rollout.slots", cfg.rollout.slots, mesh.copies),
        ("hidden size", model.embed, mesh.fsdp),
        *(
            [("number of experts", model.experts.count, mesh.expert * mesh.fsdp)]
            if model.experts
            else [("mesh.expert, without experts,", 1, mesh.expert)]
        ),
        *(
            (name, size, max(mesh.tensor, mesh.rollout_tensor))
            for name, size in (
                ("attention heads", model.num_heads),
                ("key-value heads", model.num_kv_heads),
                ("MLP size", model.inner),
                ("vocabulary", model.vocab_size),
            )
        ),
    ):
        if size % by:
            raise UserError(f"{name} is {size}: must be a multiple of {by} on a mesh of {mesh}")


def most_slots(work: Workload) -> int:
    """Returns the most slots that are of use: one per completion, at most MOST_SLOTS per batch
    shard."""
    return min(work.completions, MOST_SLOTS * work.mesh.copies)
