"""Compares the beginning of a run with its end, by one rule for all figures.

The last value of a figure is its mean over the last tenth of a run's steps. The first value is that
before training (step 0), or the mean over the first tenth of the steps. A figure without a value
there has its nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdjax.analysis.report.read import Bounds, RunRecord

RULE = (
    "The last value of every figure is its mean over the last tenth of the steps. The first is the "
    "value before training (step 0), or the mean over the first tenth of the steps."
)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The first and the last value of a figure.

    `steps` are the first and the last step that each value is a mean over. `bounds` are None where
    they are not known.
    """

    values: tuple[float, float]
    steps: tuple[tuple[int, int], tuple[int, int]]
    bounds: tuple[Bounds | None, Bounds | None] = (None, None)

    @property
    def single(self) -> bool:
        """Whether there is one value only, so that nothing can be compared."""
        return self.steps[0] == self.steps[1]

    @property
    def change(self) -> tuple[float, float] | None:
        """The 95 % interval of the change; None if the bounds are not known.

        It is made of the two intervals by Newcombe's method (Statistics in Medicine 17, 1998,
        number 10). It is too wide rather than too narrow, because both answer the same questions.
        """
        (first, last), (before, after) = self.values, self.bounds
        if before is None or after is None:
            return None
        low = math.hypot(last - after.low, before.high - first)
        high = math.hypot(after.high - last, first - before.low)
        return last - first - low, last - first + high


def windows(steps: Iterable[int], end: int) -> tuple[list[int], list[int]]:
    """Returns the steps of the first and of the last value of a figure that is known at `steps`.

    `end` is the last step that counts. Both are empty if there is no step up to it.
    """
    known = sorted(step for step in steps if step <= end)
    first = [s for s in known if s == 0] or [s for s in known if 10 * s <= end] or known[:1]
    last = [s for s in known if 10 * s > 9 * end] or known[-1:]
    return first, last


def of_run(run: RunRecord, metric: str, end: int | None = None) -> Ends | None:
    """Returns the ends of a run's metric; None if it has no finite value up to step `end`.

    None for `end` is the run's last step.
    """
    known = {
        int(row["step"]): row[metric]
        for row in run.metrics
        if math.isfinite(row.get(metric, math.nan))
    }
    first, last = windows(known, run.steps if end is None else end)
    if not first:
        return None
    bounds = run.bounds.get(metric, {})
    return Ends(
        values=(_mean(known, first), _mean(known, last)),
        steps=((first[0], first[-1]), (last[0], last[-1])),
        bounds=(_together(bounds, first), _together(bounds, last)),
    )


def of_family(runs: Sequence[RunRecord], metric: str) -> tuple[Ends | None, list[Ends]]:
    """Returns the mean ends of several runs, and those of each run that takes part.

    Runs are compared over the steps that all of them have. A run with one value only takes no part
    beside others with two.

    The bounds are the means of the runs' bounds: the runs answer the same questions, so a mean over
    runs is not surer of these than one run is.
    """
    whole = [(run, found) for run in runs if (found := of_run(run, metric))]
    told = [run for run, found in whole if not found.single] or [run for run, _ in whole]
    end = min((run.steps for run in told), default=0)
    each = [found for run in told if (found := of_run(run, metric, end))]
    each = [found for found in each if not found.single] or each
    if not each:
        return None, []
    spans = [tuple(found.steps[i] for found in each) for i in (0, 1)]
    bounds = [_mean_bounds([found.bounds[i] for found in each]) for i in (0, 1)]
    first, last = ((min(low for low, _ in span), max(high for _, high in span)) for span in spans)
    values = np.mean([found.values for found in each], axis=0)
    mean = Ends(
        values=(float(values[0]), float(values[1])),
        steps=(first, last),
        bounds=(bounds[0], bounds[1]),
    )
    return mean, each


def _mean(values: Mapping[int, float], steps: Sequence[int]) -> float:
    return float(np.mean([values[step] for step in steps]))


def _together(bounds: Mapping[int, Bounds], steps: Sequence[int]) -> Bounds | None:
    return _mean_bounds([bounds.get(step) for step in steps])


def _mean_bounds(found: Sequence[Bounds | None]) -> Bounds | None:
    """Returns the means of lower and upper bounds; None if one is not known."""
    known = [one for one in found if one is not None]
    if len(known) < len(found) or not known:
        return None
    low, high = np.mean([(one.low, one.high) for one in known], axis=0)
    return Bounds(float(low), float(high), max(one.questions for one in known))
