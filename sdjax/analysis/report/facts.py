"""Tells what made each run: model, task, learning rate, steps, program, devices, duration."""

from __future__ import annotations

import json
from typing import Any

from sdjax.analysis.report import clock, run_families
from sdjax.analysis.report.read import RunRecord


def of(run: RunRecord) -> dict[str, str]:
    """Returns the facts of a run by name, for people; one that its files do not tell is ""."""
    known, made = run_families.fields(run), (run.record.get("starts") or [{}])[-1]
    program = f"sdjax {made['sdjax']}" if "sdjax" in made else ""
    if made.get("commit"):
        program += f", {str(made['commit'])[:12]}{' (changed)' if made.get('dirty') else ''}"
    device = f"{made['devices']} x {made['device']}" if {"device", "devices"} <= {*made} else ""
    planned, spent = run.config.get("steps"), clock.of_run(run)
    unfinished = isinstance(planned, int) and planned > run.steps
    return {
        "model": _text(known.get("model.path", "")),
        "task": _text(known.get("task.class") or known.get("source", "")),
        "lr": known.get("optim.lr", ""),
        "steps": f"{run.steps:,} of {planned:,}" if unfinished else f"{run.steps:,}",
        "duration": clock.duration(float(spent.seconds[-1])) if spent and run.steps else "",
        "program": program,
        "devices": device,
    }


def _text(value: str) -> str:
    """Returns a field of a config without the quotes of JSON; several values stay as they are."""
    try:
        found: Any = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, str) else value
