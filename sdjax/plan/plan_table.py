"""Writes a plan as a table for people and as a dictionary for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdjax import config
from sdjax.plan import advice, memory, traffic
from sdjax.plan.memory import USES, Bytes
from sdjax.plan.programs import Compiled
from sdjax.plan.slices import Slice
from sdjax.plan.workload import Workload

GB = 1e9
STATE = ("parameters", "Adam", "teacher")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The estimate of one training on a slice; `compiled` is None if all of it is arithmetic."""

    work: Workload
    piece: Slice
    update: Bytes
    rollout: Bytes
    seconds: dict[str, float]
    compiled: list[Compiled] | None
    needs: tuple[str, ...] = ()
    """Arguments without which the training would refuse the slice's mesh."""
    chosen: str = ""
    """The arguments of what a search chose."""

    @property
    def fullest(self) -> dict[str, float]:
        """The bytes on a chip in each program: the compiler's number if the program was
        compiled."""
        if self.compiled is None:
            return {"update": self.update.total, "decode": self.rollout.total}
        held = sum(self.rollout.by_use.get(name, 0.0) for name in STATE)
        cache = self.rollout.by_use["KV cache"]
        # Decode runs while the train state waits; prefill runs while state and slots wait.
        beside = {"update": 0.0, "prefill": held + cache, "decode": held}
        return {one.name: one.total + beside[one.name] for one in self.compiled}

    @property
    def fits(self) -> bool:
        """Whether every program stays within the chip's memory."""
        return max(self.fullest.values()) <= self.piece.chip.memory

    @property
    def step_s(self) -> float:
        """Seconds per step."""
        return sum(self.seconds.values())


def to_dict(found: Found, cfg: config.Plan, train: str) -> dict[str, Any]:
    """Returns the plan as plain values: bytes per chip, seconds per step, cost of 100 steps."""
    w, hours = found.work, chip_hours(found)
    return {
        "train": train,
        "change": list(cfg.change),
        "topology": found.piece.name,
        "chips": found.piece.chips,
        "memory_bytes": found.piece.chip.memory,
        "fits": found.fits,
        "needs": list(found.needs),
        "chosen": found.chosen,
        "mesh": {
            "data": w.mesh.data,
            "expert": w.mesh.expert,
            "fsdp": w.mesh.fsdp,
            "tensor": w.mesh.tensor,
            "rollout_tensor": w.mesh.rollout_tensor,
        },
        "parameters": {"all": memory.params(w.model), "active": memory.active(w.model)},
        "microbatch": w.microbatch,
        "slots": w.slots,
        "row_tokens": {"student": w.student, "teacher": w.teacher, "completion": w.completion},
        "bytes": {"update": found.update.by_use, "rollout": found.rollout.by_use},
        "bytes_by_program": found.fullest,
        "compiled": [vars(one) for one in found.compiled or ()],
        "traffic_bytes_an_update": traffic.update(w),
        "seconds": found.seconds,
        "step_seconds": found.step_s,
        "mean_tokens": {"prompt": w.mean_prompt, "completion": w.mean_completion},
        "chip_hours_100_steps": hours,
        "dollars_100_steps": hours * cfg.price if cfg.price else None,
        "changes": [] if found.fits else advice.changes(w, found.piece),
    }


def chip_hours(found: Found) -> float:
    """Returns the chip-hours of 100 steps."""
    return 100 * found.step_s * found.piece.chips / 3600


def to_markdown(found: Found, cfg: config.Plan, train: str, model: str) -> str:
    """Returns the page of one training, given by its file and the name of its model."""
    w, piece = found.work, found.piece
    rows = "row" if w.rows == 1 else "rows"
    lines = [
        f"# {train} on {piece.name}",
        "",
        f"{model}, {piece.size}: {w.mesh}.",
        f"Microbatch {w.microbatch}: {w.rows} {rows} a shard of {w.student:,} student and "
        f"{w.teacher:,} teacher tokens; {w.slots:,} slots of {w.capacity:,} tokens.",
        *_parameters(w),
        *(
            f"The mesh does not divide the config's value, so this assumes {n}."
            for n in found.needs
        ),
        *([f"As arguments: {found.chosen}"] if found.chosen else ()),
        "",
        *_memory(found),
        "",
        *_seconds(found, cfg),
        "",
    ]
    if found.fits:
        return "\n".join([*lines, f"It fits {piece.name}.", ""])
    changes = advice.changes(w, piece) or ["none of the usual ones; take a larger slice"]
    lines += [f"It does not fit {piece.name}. What changes that, by arithmetic:", ""]
    return "\n".join([*lines, *(f"- {change}" for change in changes), ""])


def summary(plans: Sequence[tuple[str, Found]], cfg: config.Plan) -> str:
    """Returns a table of several plans, one row each."""
    unit = "device" if any(found.piece.chip.devices > 1 for _, found in plans) else "chip"
    head = (
        *("training", "slice", "mesh", "microbatch", "slots"),
        *(f"GB per {unit}: update", "decode", "of", "s per step", "chip-hours, 100 steps"),
        *(("dollars",) if cfg.price else ()),
    )
    rows = [head, ("---",) * len(head)]
    for train, found in plans:
        w, full, hours = found.work, found.fullest, chip_hours(found)
        sizes = [f"{x / GB:.1f}" for x in (full["update"], full["decode"], found.piece.chip.memory)]
        rows.append(
            (
                *(f"`{train}`", found.piece.name, str(w.mesh), f"{w.microbatch}", f"{w.slots:,}"),
                *(*sizes, f"{found.step_s:,.0f}", f"{hours:,.0f}"),
                *((f"{hours * cfg.price:,.0f}",) if cfg.price else ()),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _parameters(w: Workload) -> list[str]:
    """Returns a line for a model of experts, no line for another."""
    if w.model.experts is None:
        return []
    every, used = (count(w.model) / 1e9 for count in (memory.params, memory.active))
    return [f"{every:.1f}B parameters, of which a token uses {used:.1f}B."]


def _memory(found: Found) -> list[str]:
    uses = [u for u in USES if found.update.by_use.get(u) or found.rollout.by_use.get(u)]
    unit = "chip" if found.piece.chip.devices == 1 else "device"
    rows = [f"| GB per {unit} | update | rollout |", "|---|---|---|"]
    for use in uses:
        rows.append(f"| {use} | {_gb(found.update, use)} | {_gb(found.rollout, use)} |")
    total = [b.total / GB for b in (found.update, found.rollout)]
    rows.append(f"| all, by arithmetic | {total[0]:.1f} | {total[1]:.1f} |")
    if found.compiled is not None:
        rows += ["", f"| compiled, GB per {unit} | arguments | temporaries | with waiting state |"]
        rows.append("|---|---|---|---|")
        for one in found.compiled:
            sizes = (one.arguments, one.temporaries, found.fullest[one.name])
            rows.append(f"| {one.name} | " + " | ".join(f"{x / GB:.1f}" for x in sizes) + " |")
        if any(one.rematerialized for one in found.compiled):
            rows += [
                "",
                "The compiler gathers a whole array because it finds no better way: a defect.",
            ]
    return rows


def _gb(held: Bytes, use: str) -> str:
    size = held.by_use.get(use, 0.0)
    return f"{size / GB:.2f}" if size else ""


def _seconds(found: Found, cfg: config.Plan) -> list[str]:
    w = found.work
    rows = ["| phase | seconds |", "|---|---|"]
    rows += [f"| {name} | {value:,.1f} |" for name, value in found.seconds.items()]
    rows.append(f"| step | {found.step_s:,.1f} |")
    hours = chip_hours(found)
    cost = f", {hours * cfg.price:,.0f} dollars" if cfg.price else ""
    return [
        *rows,
        "",
        f"With completions of {w.mean_completion:,.0f} tokens on average (a roofline; without "
        f"grading). 100 steps: {100 * found.step_s / 3600:,.1f} hours, {hours:,.0f} "
        f"chip-hours{cost}.",
    ]
