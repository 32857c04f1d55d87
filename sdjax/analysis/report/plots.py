"""Draws the report's curves as PNG files for papers, with matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sdjax.analysis.report import charts, run_families
from sdjax.analysis.report.charts import Chart
from sdjax.analysis.report.run_families import RunFamily
from sdjax.errors import UserError, writing
from sdjax.io.files import replacing

# The palette of Okabe and Ito, as on the page.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")
DASHES = ("-", "--", ":")


def library() -> ModuleType:
    """Returns matplotlib.figure; raises UserError if matplotlib is not installed."""
    try:
        from matplotlib import figure
    except ImportError:
        raise UserError(
            "plots needs matplotlib: pip install 'sdjax[plots]', or leave plots out"
        ) from None
    return figure


def write(groups: Sequence[RunFamily], folder: Path) -> list[Path]:
    """Writes a PNG file per chart of the report and returns the files.

    A line is a family's mean over seeds; the band spans its smallest and largest value. Raises
    WriteError if a file cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for chart in charts.of(run_families.metrics(groups)):
        name = re.sub(r"\W+", "_", chart.title.lower().replace("'", "")).strip("_")
        files.append(folder / f"{name}.png")
        with replacing(files[-1]) as new:
            _plot(chart, groups).savefig(new, dpi=200, format="png")
    return files


def _plot(chart: Chart, groups: Sequence[RunFamily]):
    # Not pyplot, because it would choose a display and keep every figure in memory.
    figure = library().Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for dash, metric in enumerate(chart.metrics):
        for number, family in enumerate(groups):
            values = run_families.series(family, metric)
            if values is None:
                continue
            colour = COLOURS[number % len(COLOURS)]
            style = {"linestyle": DASHES[dash % len(DASHES)], "linewidth": 1.8}
            axes.plot(values.steps, values.mean, color=colour, **style)
            if len(family.runs) > 1:
                band = {"color": colour, "alpha": 0.2, "linewidth": 0}
                axes.fill_between(values.steps, values.low, values.high, **band)
    axes.set(title=chart.title, xlabel="step", ylabel=chart.unit)
    axes.grid(alpha=0.3)
    # The legend explains colours and dashes separately, and stands outside to hide no curve.
    for number, family in enumerate(groups):
        axes.plot([], [], color=COLOURS[number % len(COLOURS)], label=family.name)
    for dash, label in enumerate(chart.metrics.values()):
        if label:
            axes.plot([], [], color="black", linestyle=DASHES[dash % len(DASHES)], label=label)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
