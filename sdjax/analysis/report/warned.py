"""Joins the warnings and alarms of a run's steps into spans, to be marked on the curves."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdjax.analysis.report.read import RunRecord

ALARMS = ("epistemic_drop", "ood_drop", "fork_drop", "alarm")
FALLS = {
    "alarm/epistemic_drop": "epistemic words per 1,000 tokens",
    "alarm/ood_drop": "the out-of-domain score",
    "alarm/fork_drop": "the fork rate",
}
MOST = 100
"""Most spans of a run that the page shows."""


@dataclass(frozen=True, kw_only=True)
class WarnedSpan:
    """Successive steps of a run with a warning of one kind; `text` is that of the first step."""

    run: int
    kind: str
    alarm: bool
    first: int
    last: int
    text: str


def of(runs: Sequence[RunRecord]) -> tuple[list[WarnedSpan], str]:
    """Returns the spans of all runs, in the order of their steps, and what is left out."""
    found = [_spans(number, run) for number, run in enumerate(runs)]
    left_out = sum(max(len(spans) - MOST, 0) for spans in found)
    note = f"{left_out:,} later warnings are left out." if left_out else ""
    return [span for spans in found for span in spans[:MOST]], note


def _spans(number: int, run: RunRecord) -> list[WarnedSpan]:
    every = [int(row["step"]) for row in run.metrics]
    evaluated = [int(row["step"]) for row in run.metrics if "alarm/raised" in row]
    open_: dict[str, dict[str, Any]] = {}
    done = []
    for row in run.warnings if run.warnings is not None else _of_metrics(run):
        step, kind = row["step"], row["kind"]
        span = open_.get(kind)
        steps = evaluated if kind in ALARMS else every
        # A span goes on while no step lies between at which it could have ended.
        if span and bisect.bisect_left(steps, step) - bisect.bisect_right(steps, span["last"]) < 1:
            span["last"] = step
            continue
        open_[kind] = {"first": step, "last": step, "kind": kind, "text": row["text"]}
        done.append(open_[kind])
    return [WarnedSpan(run=number, alarm=span["kind"] in ALARMS, **span) for span in done]


def _of_metrics(run: RunRecord) -> list[dict[str, Any]]:
    """Returns the warnings of a run of an earlier version, by its metrics."""
    limits = run.config.get("alarm") or {}
    out = []
    for row in run.metrics:
        falls = [
            f"{label} fell by {row[name]:.0%} from the start"
            for name, label in FALLS.items()
            if row.get(name, 0) >= limits.get(name.removeprefix("alarm/"), 0) > 0
        ]
        if row.get("alarm/raised", 0) > 0:
            text = f"alarm: {' and '.join(falls) or 'see alarm/ in metrics.jsonl'}"
            out.append({"step": row["step"], "kind": "alarm", "text": text})
        if row.get("optim/skipped", 0) > 0:
            text = "updates skipped: loss or gradient not finite"
            out.append({"step": row["step"], "kind": "skipped", "text": text})
    return out
