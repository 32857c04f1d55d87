"""Reads how scores depend on the field that a sweep varies, from the run directories of its
trainings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.analysis import markdown
from sdjax.errors import UserError

# The score on a run's own questions is a mean over this many last steps.
LAST_STEPS = 10


def of_run(folder: Path) -> dict[str, Any]:
    """Returns the figures of a finished training before and after, by set of examples.

    The first set, "in domain", is the task's held-out set. "trained" is the share of correct
    completions in the rollouts of the last LAST_STEPS steps. It is the score on the questions that
    the run learned from. Raises UserError if the training is not finished.
    """
    file = folder / "evaluations.json"
    try:
        evaluations = json.loads(file.read_text(encoding="utf-8"))
        metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{folder}: is no finished training ({error.strerror})") from None
    rollouts = [json.loads(line).get("rollout/correct") for line in metrics]
    known = [float(x) for x in rollouts if x is not None]
    return {
        "steps": evaluations[-1]["step"],
        "trained": float(np.mean(known[-LAST_STEPS:])) if known else None,
        "before": _sets(evaluations[0]),
        "after": _sets(evaluations[-1]),
    }


def _sets(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    others = evaluation.get("out_of_domain", {})
    return {name: _figures(of) for name, of in {"in domain": evaluation, **others}.items()}


def _figures(of: Mapping[str, Any]) -> dict[str, float]:
    score = of["accuracy"][f"avg@{of['accuracy']['k']}"]
    return {
        "score": score["value"],
        "low": score["low"],
        "high": score["high"],
        "tokens": of["lengths"]["mean"],
        "truncated": of["lengths"]["truncated"],
        "epistemic_per_response": of["epistemic"]["per_response"],
        "epistemic_per_1000_tokens": of["epistemic"]["per_1000_tokens"],
    }


def to_markdown(axis: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table with one row per training: score, tokens and epistemic words of each set.

    `rows` are results of `of_run` with the additional keys "run" and "value". The first line is the
    model before training.
    """
    sets = list(rows[0]["after"])
    heads = [
        f"{name}: {figure}"
        for name in sets
        for figure in ("score (95% interval)", "tokens", "epistemic words")
    ]

    def cells(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
        return [cell for name in sets for cell in _cells(figures[name])]

    lines = [["before", "", "", *cells(rows[0]["before"])]]
    for row in rows:
        trained = "" if row["trained"] is None else f"{row['trained']:.3f}"
        lines.append([row["run"], str(row["value"]), trained, *cells(row["after"])])
    return markdown.table(["training", axis, "score on its own questions", *heads], lines)


def _cells(figures: Mapping[str, float]) -> tuple[str, str, str]:
    return (
        f"{figures['score']:.3f} ({figures['low']:.3f} to {figures['high']:.3f})",
        f"{figures['tokens']:.1f}",
        f"{figures['epistemic_per_response']:.2f}",
    )
