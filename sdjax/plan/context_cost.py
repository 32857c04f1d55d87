"""Estimates what one more context of the teacher costs per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdjax import config
from sdjax.models import flops
from sdjax.models.network.model_config import ModelConfig
from sdjax.plan import memory, seconds, slices, workload
from sdjax.plan.slices import Slice
from sdjax.plan.workload import MeshSizes


@dataclass(frozen=True, kw_only=True)
class ContextCost:
    """What a step costs whose teacher reads one context."""

    update_flops: float
    """Operations of the updates of one step, if the context teaches all completions."""
    update_share: float
    """These operations as a multiple of those without a teacher."""
    update_bytes: float
    """Bytes on a device during an update."""
    step_s: float | None
    """Seconds per step, without grading; None: the devices are unknown."""

    def cells(self) -> dict[str, str]:
        """Returns the cells of a table, by the heads of their columns."""
        out = {
            "update, of one without a teacher": f"x {self.update_share:.2f}",
            "TFLOP per step": f"{self.update_flops / 1e12:.3g}",
            "GB per device": f"{self.update_bytes / 1e9:.2f}",
        }
        return out if self.step_s is None else out | {"s per step": f"{self.step_s:.3g}"}


def slice_of(kind: str, devices: int) -> Slice | None:
    """Returns the slice of these devices, of a kind that jax names; None if none is known."""
    for chip in slices.CHIPS.values():
        for shape in chip.shapes if chip.kind == kind else ():
            if math.prod(map(int, shape.split("x"))) * chip.devices == devices:
                return Slice(chip=chip, shape=shape)
    return None


def of_context(
    train: config.Train,
    model: ModelConfig,
    mesh: MeshSizes,
    piece: Slice | None,
    prompts: Sequence[int],
    reprompts: Sequence[int],
    completions: Sequence[int],
) -> ContextCost:
    """Returns the cost of a step of a training whose target reads one context.

    Args:
        train: The training; its `target` names the context.
        model: The sizes of its model.
        mesh: How the devices divide it.
        piece: The devices; None: seconds are unknown.
        prompts: Tokens of the prompts of some completions.
        reprompts: Tokens of what the teacher reads for them.
        completions: Tokens of these completions.

    Raises:
        UserError: The mesh does not divide batch or model.
    """
    w = workload.make(
        train,
        model,
        mesh,
        slots=train.rollout.slots,
        mean_prompt=sum(prompts) / len(prompts),
        mean_completion=sum(completions) / len(completions),
    )
    alone, taught = (
        flops.update(model, prompts, reprompts, completions, teachers=n) for n in (0, w.teachers)
    )
    step_s = None
    if piece is not None:
        if not w.slots:
            fit = min(memory.slots_that_fit(w, piece.chip.memory), workload.most_slots(w))
            w = replace(w, slots=max(fit, mesh.copies))
        step_s = sum(seconds.by_phase(w, piece).values())
    return ContextCost(
        update_flops=taught * w.completions / len(completions),
        update_share=taught / alone,
        update_bytes=memory.update(w, tpu=piece is not None and piece.chip.is_tpu).total,
        step_s=step_s,
    )
