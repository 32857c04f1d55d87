"""Draws pass@k against k: the chance that at least one of k answers is correct."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from sdjax.analysis.accuracy import Accuracy, Estimate
from sdjax.analysis.report import plots


def library() -> ModuleType:
    """Returns matplotlib.figure; raises UserError if matplotlib is not installed."""
    return plots.library()


def points(accuracy: Accuracy) -> dict[int, Estimate]:
    """Returns pass@j by j, from 1 to the number of completions; pass@1 is avg@k."""
    out = {1: accuracy.estimates[f"avg@{accuracy.k}"]}
    for name, estimate in accuracy.estimates.items():
        if name.startswith("pass@"):
            out[int(name.removeprefix("pass@"))] = estimate
    return dict(sorted(out.items()))


def write(by_set: Mapping[str, Accuracy], file: Path) -> None:
    """Writes a PNG file with a line per set of examples and a band for its intervals."""
    # Not pyplot, because it would choose a display and keep every figure in memory.
    figure = library().Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, accuracy) in enumerate(by_set.items()):
        curve = points(accuracy)
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        of = {end: [100 * getattr(e, end) for e in curve.values()] for end in ("low", "high")}
        values = [100 * e.value for e in curve.values()]
        label = f"{name} ({accuracy.examples} examples)"
        axes.plot(list(curve), values, color=colour, marker="o", linewidth=1.8, label=label)
        axes.fill_between(list(curve), of["low"], of["high"], color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({j for accuracy in by_set.values() for j in points(accuracy)})
    axes.set_xticks(ticks, [str(j) for j in ticks])
    axes.set(title="At least one of k answers is correct", xlabel="k", ylabel="pass@k, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=200)
