"""Collects the figures of several runs as plain values for the page and as tables for the
terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.analysis.report import charts, clock, ends, run_families, story, warned
from sdjax.analysis.report.charts import Chart
from sdjax.analysis.report.ends import Ends
from sdjax.analysis.report.read import RunRecord
from sdjax.analysis.report.run_families import RunFamily, Series
from sdjax.analysis.report.words import Change

if TYPE_CHECKING:
    from rich.table import Table

POINTS = 1000
"""Most steps of a curve that the page draws."""
COLUMNS = 7
"""Most steps in a table."""


def page(
    runs: Sequence[RunRecord], groups: Sequence[RunFamily], changes: Sequence[Change]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the data of the views with figures, and the curves that only a choice shows.

    NaN becomes None.
    """
    names = run_families.metrics(groups)
    found = {n: [run_families.series(f, n) for f in groups] for n in names if n != "step"}
    found = {name: each for name, each in found.items() if any(each)}
    drawn = charts.of(list(found))
    at_once = {name for chart in drawn for name in chart.metrics}
    longest = max((len(s.steps) for each in found.values() for s in each if s), default=0)
    grids: dict[tuple[int, ...], int] = {}
    series = {n: [s and _plain(s, grids) for s in each] for n, each in found.items()}
    spans, left_out = warned.of(runs)
    clocks = [clock.of_run(run) for run in runs]
    of_run = {run.name: each for run, each in zip(runs, clocks, strict=True)}
    of_family = [clock.of_family([of_run[run.name] for run in f.runs]) for f in groups]
    first = {
        "families": [family.name for family in groups],
        "differences": run_families.differences(runs),
        "charts": [vars(chart) for chart in drawn],
        "story": [_panel(panel) for panel in story.of(groups)],
        "rule": ends.RULE,
        "series": {n: each for n, each in series.items() if n in at_once},
        "more": [n for n in series if n not in at_once],
        "grids": [list(grid) for grid in grids],
        "clocks": {
            "families": [clock.to_dict(one, POINTS) for one in of_family],
            "runs": [clock.to_dict(one, POINTS) for one in clocks],
        },
        "warnings": [asdict(span) for span in spans],
        "warnings_note": left_out,
        "thinned": f"{POINTS:,} of up to {longest:,} steps are drawn, evenly spaced."
        if longest > POINTS
        else "",
        "summary": [row for chart in drawn for row in _summary(chart, runs)],
        "words": [change.to_dict() for change in changes],
    }
    return first, {n: each for n, each in series.items() if n not in at_once}


def _panel(panel: story.Panel) -> dict[str, Any]:
    return {**vars(panel.chart), "sentences": [vars(one) for one in panel.sentences]}


def _plain(values: Series, grids: dict[tuple[int, ...], int]) -> dict[str, Any]:
    """Returns a series without what the page can tell itself; its steps by their number."""

    def listed(array: np.ndarray) -> list:
        if array.ndim > 1:
            return [listed(row) for row in array]
        if array.dtype.kind == "i":
            return array.tolist()
        return [float(f"{x:.6g}") if math.isfinite(x) else None for x in array.tolist()]

    kept = vars(run_families.thinned(values, POINTS)).copy()
    steps = tuple(kept.pop("steps").tolist())
    if len(values.runs) == 1:
        for name in ("low", "high", "half", "number", "runs"):
            kept.pop(name)
    if not np.isfinite(values.questions).any():
        for name in ("least", "most", "questions"):
            kept.pop(name)
    return {
        "grid": grids.setdefault(steps, len(grids)),
        **{name: listed(array) for name, array in kept.items()},
    }


def _summary(chart: Chart, runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    return [
        {
            "label": f"{chart.title}, {label}" if label else chart.title,
            "unit": chart.unit,
            "help": chart.help,
            "values": [(found := ends.of_run(run, metric)) and asdict(found) for run in runs],
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


def sentences(groups: Sequence[RunFamily]) -> list[str]:
    """Returns the story as lines for the terminal."""
    out = []
    for panel in story.of(groups):
        several = any(one.family is not None for one in panel.sentences)
        out += [f"{panel.chart.title}:"] if several else []
        out += [f"  {one.text}" if several else one.text for one in panel.sentences]
    return out


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
    """Returns a table with one row per run: the first and last value of each chart's first
    metric."""
    named = [(chart, next(iter(chart.metrics))) for chart in drawn]
    table = _table(
        "First -> last value; last: mean of the last tenth of the steps",
        "run",
        [_head(chart, metric, runs) for chart, metric in named],
    )
    for run in runs:
        _add(table, run.name, [_ends_cell(ends.of_run(run, metric)) for _, metric in named])
    return table


def _head(chart: Chart, metric: str, runs: Sequence[RunRecord]) -> str:
    """Returns the title of a column; that of an accuracy has the number of questions."""
    known = {b.questions for run in runs for b in run.bounds.get(metric, {}).values()}
    if not known:
        return chart.title
    return f"{chart.title} (95 % interval, {' or '.join(map(str, sorted(known)))} questions)"


def _ends_cell(found: Ends | None) -> str:
    if found is None:
        return "-"
    bounds = found.bounds[1]
    how_sure = f" ({bounds.low:.3f}-{bounds.high:.3f})" if bounds else ""
    return f"{found.values[0]:.3g} -> {found.values[1]:.3g}{how_sure}"


def _by_step(title: str, metric: str, groups: Sequence[RunFamily]) -> Table:
    each = [(family, run_families.series(family, metric)) for family in groups]
    steps = sorted({int(step) for _, s in each if s for step in s.steps})
    at = np.unique(np.linspace(0, len(steps) - 1, min(COLUMNS, len(steps))).round().astype(int))
    shown = [steps[i] for i in at]
    table = _table(
        f"{title}, {metric.rpartition('/')[2]}, by step: mean of n runs (95 % interval)",
        "runs",
        ["questions", *(str(step) for step in shown)],
    )
    for family, values in each:
        if values:
            known = values.questions[np.isfinite(values.questions)]
            questions = f"{known.max():.0f}" if len(known) else "-"
            runs = len(family.runs)
            name = f"{family.name} (n = {runs})" if runs > 1 else family.name
            _add(table, name, [questions, *(_cell(values, step) for step in shown)])
    return table


def _cell(values: Series, step: int) -> str:
    at = np.flatnonzero(values.steps == step)
    if not len(at):
        return "-"
    i = int(at[0])
    how_sure = ""
    if math.isfinite(values.least[i]):
        how_sure = f" ({values.least[i]:.3f}-{values.most[i]:.3f})"
    runs = f", n = {values.number[i]:.0f}" if values.number[i] < len(values.runs) else ""
    return f"{values.mean[i]:.3f}{how_sure}{runs}"


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
