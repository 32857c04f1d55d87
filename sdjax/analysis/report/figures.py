"""Collects the figures of several runs as plain values for the page and as tables for the
terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.analysis.report import charts, run_families
from sdjax.analysis.report.charts import Chart
from sdjax.analysis.report.read import RunRecord
from sdjax.analysis.report.run_families import RunFamily, Series
from sdjax.analysis.report.words import Change

if TYPE_CHECKING:
    from rich.table import Table

POINTS = 1000
"""Most steps of a curve that the page draws."""
COLUMNS = 7
"""Most steps in a table."""


def page(runs: Sequence[RunRecord], groups: Sequence[RunFamily], changes: Sequence[Change]) -> dict:
    """Returns the data of all views of the page except the rollouts; NaN becomes None."""
    names = run_families.metrics(groups)
    found = {n: [run_families.series(f, n) for f in groups] for n in names if n != "step"}
    found = {name: each for name, each in found.items() if any(each)}
    drawn = charts.of(list(found))
    longest = max((len(s.steps) for each in found.values() for s in each if s), default=0)
    return {
        "families": [family.name for family in groups],
        "differences": run_families.differences(runs),
        "charts": [vars(chart) for chart in drawn],
        "series": {n: [s and _plain(s) for s in each] for n, each in found.items()},
        "thinned": f"{POINTS:,} of up to {longest:,} steps are drawn, evenly spaced."
        if longest > POINTS
        else "",
        "summary": [row for chart in drawn for row in _summary(chart, runs)],
        "words": [change.to_dict() for change in changes],
    }


def about(run: RunRecord) -> dict[str, str]:
    """Returns the model, task, learning rate, program and devices of a run.

    A fact that its files do not tell is "".
    """
    known, made = run_families.fields(run), (run.record.get("starts") or [{}])[-1]
    model, task = (known.get(name, "").strip('"') for name in ("model.path", "task.class"))
    program = f"sdjax {made['sdjax']}" if "sdjax" in made else ""
    if made.get("commit"):
        program += f", {made['commit'][:12]}{' (changed)' if made.get('dirty') else ''}"
    device = f"{made['devices']} x {made['device']}" if {"device", "devices"} <= {*made} else ""
    return {
        "model": model,
        "task": task or known.get("source", "").strip('"'),
        "lr": known.get("optim.lr", ""),
        "program": program,
        "devices": device,
    }


def _plain(values: Series) -> dict[str, Any]:
    def listed(array: np.ndarray) -> list:
        if array.ndim > 1:
            return [listed(row) for row in array]
        if array.dtype.kind == "i":
            return array.tolist()
        return [float(f"{x:.6g}") if math.isfinite(x) else None for x in array.tolist()]

    return {k: listed(array) for k, array in vars(run_families.thinned(values, POINTS)).items()}


def ends(run: RunRecord, metric: str) -> tuple[float, float] | None:
    """Returns the first and the last finite value of a run's metric."""
    found = [row[metric] for row in run.metrics if math.isfinite(row.get(metric, math.nan))]
    return (found[0], found[-1]) if found else None


def _summary(chart: Chart, runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    return [
        {
            "label": f"{chart.title}, {label}" if label else chart.title,
            "unit": chart.unit,
            "help": chart.help,
            "values": [ends(run, metric) for run in runs],
        }
        for metric, label in chart.metrics.items()
    ]


def tables(
    runs: Sequence[RunRecord], groups: Sequence[RunFamily], changes: Sequence[Change]
) -> list[Table]:
    """Returns the terminal's tables: first and last metrics, accuracy by step, words by set."""
    drawn = charts.of(run_families.metrics(groups))
    accuracy = [chart for chart in drawn if chart.title.startswith("Held-out accuracy")]
    by_step = [
        _by_step(chart.title, metric, groups) for chart in accuracy for metric in chart.metrics
    ]
    sets = dict.fromkeys(change.set for change in changes)
    words = [_words_table(name, [c for c in changes if c.set == name]) for name in sets]
    return [*([_ends_table(drawn, runs)] if drawn else []), *by_step, *words]


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column(Text(first), overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _add(table: Table, label: str, cells: Sequence[str]) -> None:
    from rich.text import Text

    table.add_row(Text(label), *(Text(cell) for cell in cells))


def _ends_table(drawn: Sequence[Chart], runs: Sequence[RunRecord]) -> Table:
    """Returns a table with one row per run: the first metric of each chart at the first and last
    step."""
    rows = [row for chart in drawn for row in _summary(chart, runs)[:1]]
    table = _table("First -> last value", "run", [row["label"] for row in rows])
    for number, run in enumerate(runs):
        both = [row["values"][number] for row in rows]
        _add(table, run.name, [f"{v[0]:.3g} -> {v[1]:.3g}" if v else "-" for v in both])
    return table


def _by_step(title: str, metric: str, groups: Sequence[RunFamily]) -> Table:
    each = [(family, run_families.series(family, metric)) for family in groups]
    steps = sorted({int(step) for _, s in each if s for step in s.steps})
    at = np.unique(np.linspace(0, len(steps) - 1, min(COLUMNS, len(steps))).round().astype(int))
    shown = [steps[i] for i in at]
    table = _table(
        f"{title}, {metric.rpartition('/')[2]}, by step: mean over seeds (least to most)",
        "runs",
        [str(step) for step in shown],
    )
    for family, values in each:
        if values:
            _add(table, family.name, [_cell(values, step) for step in shown])
    return table


def _cell(values: Series, step: int) -> str:
    at = np.flatnonzero(values.steps == step)
    if not len(at):
        return "-"
    i = int(at[0])
    spread = f" ({values.low[i]:.3f}-{values.high[i]:.3f})" if values.number[i] > 1 else ""
    return f"{values.mean[i]:.3f}{spread}"


def _words_table(name: str, changes: Sequence[Change]) -> Table:
    """Returns a table with one row per run: counts of each word by the first run's lexicon, and
    their rate."""
    shown = [change for change in changes if change.lexicon == changes[0].lexicon]
    words = list(dict.fromkeys(word for c in shown for word in c.before.words))
    title = f"Epistemic words ({changes[0].lexicon}), before -> after, {name}"
    table = _table(title, "run", [*words, "per 1,000 tokens"])
    for c in shown:
        counts = [f"{c.before.words.get(w, 0)} -> {c.after.words.get(w, 0)}" for w in words]
        rate = f"{c.before.per_1000_tokens:.3g} -> {c.after.per_1000_tokens:.3g}"
        _add(table, c.run, [*counts, rate])
    return table
