"""Counts the tokens and the seconds of a run up to each step, for the other axes of the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdjax.analysis.report.read import RunRecord

SPEEDS = ("rollout/tokens_per_s", "sft/tokens_per_s")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What a run has used up after each of its steps, from step 0.

    `seconds` are those of the steps alone, without evaluations and checkpoints. `tokens` are those
    of the sampled completions, or in a finetuning those that were read.
    """

    steps: np.ndarray  # int64[S]
    tokens: np.ndarray  # float64[S]
    seconds: np.ndarray  # float64[S]


def of_run(run: RunRecord) -> Clock | None:
    """Returns the clock of a run; None if one of its steps has no time."""
    steps, tokens, seconds = [0], [0.0], [0.0]
    for row in run.metrics:
        step = int(row["step"])
        if step <= steps[-1]:
            continue
        times = [v for name, v in row.items() if name.startswith("time/")]
        spent = sum(times) if times else math.nan
        speed = next((row[name] for name in SPEEDS if name in row), math.nan)
        # A line of a finetuning is the mean of the steps since the line before.
        taken = step - steps[-1]
        if not math.isfinite(spent * speed):
            return None
        steps.append(step)
        tokens.append(tokens[-1] + taken * spent * speed)
        seconds.append(seconds[-1] + taken * spent)
    return Clock(steps=np.array(steps), tokens=np.array(tokens), seconds=np.array(seconds))


def of_family(clocks: Sequence[Clock | None]) -> Clock | None:
    """Returns the mean clock of several runs; None if one of them has none.

    It adds up the mean of what each step took, over the runs that have the step. So it goes on
    where a run ends.
    """
    known = [clock for clock in clocks if clock is not None]
    if len(known) < len(clocks) or not known:
        return None
    steps = np.unique(np.concatenate([clock.steps for clock in known]))
    return Clock(
        steps=steps,
        tokens=_mean(steps, [(clock.steps, clock.tokens) for clock in known]),
        seconds=_mean(steps, [(clock.steps, clock.seconds) for clock in known]),
    )


def _mean(steps: np.ndarray, each: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    if len(steps) < 2:
        return np.zeros(len(steps))
    known = [np.interp(steps, of, values, right=np.nan) for of, values in each]
    taken = np.nanmean(np.diff(np.array(known), axis=1), axis=0)
    return np.concatenate([[0.0], np.cumsum(taken)])


def duration(seconds: float) -> str:
    """Returns a time in its two largest units."""
    whole = round(seconds)
    for unit, name, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // below} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.3g} s"


def to_dict(clock: Clock | None, points: int) -> dict[str, list] | None:
    """Returns plain values for the page, at most `points` evenly spaced ones; the page fills in."""
    if clock is None:
        return None
    at = np.unique(np.linspace(0, len(clock.steps) - 1, points).round().astype(int))
    values: Mapping[str, np.ndarray] = vars(clock)
    return {name: [_short(x) for x in array[at].tolist()] for name, array in values.items()}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
