"""Groups runs that differ only in their seed, and combines their metrics."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.analysis.report.read import RunRecord

IGNORED = re.compile(
    r"(out|seed|data\.seed|resume|allow|replay|profile|steps|epochs|log_every"
    r"|(log|checkpoint|alarm)\.(?!teacher_off).*|eval\.(every|at_ends|fork_rate)"
    r"|optim\.most_skipped)(\.class)?"
)
"""Fields of a config in which runs of one family may differ: the seed, how long a run is, and what
it keeps, shows and measures on the way."""

STARTED = ("out", "resume", "allow", "replay", "profile")
"""Fields that say how a run was started."""

OFF = ("null", "false", "0", '""', "[]", "{}")
"""Values that mean the same as a missing field, so that runs of several versions compare."""

LEVEL = 0.95


@dataclass(frozen=True)
class RunFamily:
    """Runs that differ only in their seed; the name is what their names have in common."""

    name: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric of a family, by step.

    All arrays are float64[S] except `steps` and `runs`. `mean`, `low` (smallest) and `high`
    (largest) are over the `number` of runs that have the step. `half` is half the width of the
    mean's 95 % interval by Student's t; it is NaN for one run. `runs` is float64[runs, S], with NaN
    where a run lacks the step. `least` and `most` are the interval of an accuracy, the mean over
    the runs, and `questions` its number of questions; NaN where they are not known.
    """

    steps: np.ndarray  # int64[S]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    half: np.ndarray
    number: np.ndarray
    runs: np.ndarray
    least: np.ndarray
    most: np.ndarray
    questions: np.ndarray


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the fields of a config as dotted names, with their values as JSON."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(inner, sort_keys=True)


def fields(run: RunRecord) -> dict[str, str]:
    """Returns the fields of a run's config by dotted name, with their values as JSON.

    A field that was changed in a resumed run has all its values, each with the steps it held for.
    """
    out = dict(flat(run.config))
    first: dict[str, str] = {}
    for change in run.record.get("changes", []):
        name = str(change["name"])
        before = first.get(name, json.dumps(change["old"], sort_keys=True))
        new = json.dumps(change["new"], sort_keys=True)
        first[name] = f"{before}; from step {int(change['after']) + 1} on {new}"
    return out | first


def of(runs: Sequence[RunRecord]) -> list[RunFamily]:
    """Returns the families in the order of their first runs."""
    found: dict[tuple, list[RunRecord]] = {}
    for run in runs:
        known = fields(run).items()
        kept = [(k, v) for k, v in known if not IGNORED.fullmatch(k) and v not in OFF]
        found.setdefault(tuple(sorted(kept)), []).append(run)
    taken: list[str] = []
    for members in found.values():
        name = _common([run.name for run in members])
        taken.append(f"{name} ({taken.count(name) + 1})" if name in taken else name)
    return [RunFamily(n, tuple(m)) for n, m in zip(taken, found.values(), strict=True)]


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike)
    if any(name[len(common) :][:1].isdigit() for name in names):
        common = common.rstrip("0123456789")  # 10 and 11 have no number in common
    common = common.rstrip("._-/ ")
    return common or f"{names[0]} and {len(names) - 1} more"


def differences(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Returns the fields in which runs differ, with the value of every run; "" for a missing
    field."""
    by_run = [fields(run) for run in runs]
    names = dict.fromkeys(name for one in by_run for name in one if name not in STARTED)
    values = {name: [one.get(name, "") for one in by_run] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def metrics(families: Sequence[RunFamily]) -> list[str]:
    """Returns the names of all metrics, sorted."""
    return sorted({n for f in families for run in f.runs for row in run.metrics for n in row})


def has(family: RunFamily, metric: str) -> bool:
    """Returns whether any run of a family has a finite value of a metric."""
    return any(
        math.isfinite(row.get(metric, math.nan)) for run in family.runs for row in run.metrics
    )


def series(family: RunFamily, metric: str) -> Series | None:
    """Returns a metric of a family; None if no run has a finite value of it.

    Runs may be evaluated at different steps. Then a held-out figure has the steps that all runs
    have as long as they last, so that its mean does not change with the runs behind it.
    """
    by_run = [
        {
            int(row["step"]): row[metric]
            for row in run.metrics
            if math.isfinite(row.get(metric, math.nan))
        }
        for run in family.runs
    ]
    steps = sorted(set().union(*by_run))
    if not steps:
        return None
    if metric.startswith(("eval/", "ood/")):
        steps = _shared(by_run, steps)
    runs = _columns(by_run, steps)
    number = np.sum(np.isfinite(runs), axis=0)
    mean = np.nansum(runs, axis=0) / number
    spread = np.nansum((runs - mean) ** 2, axis=0)
    freedom = np.maximum(number - 1, 1)
    half = _quantile(freedom) * np.sqrt(spread / freedom / number)
    least, most, questions = _bounds(family, metric, steps, runs)
    return Series(
        steps=np.array(steps, np.int64),
        mean=mean,
        low=np.nanmin(runs, axis=0),
        high=np.nanmax(runs, axis=0),
        half=np.where(number > 1, half, np.nan),
        number=number,
        runs=runs,
        least=least,
        most=most,
        questions=questions,
    )


def _bounds(
    family: RunFamily, metric: str, steps: Sequence[int], runs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns lower bounds, upper bounds and questions as float64[S], means over the runs.

    They are NaN at a step where one of the values `runs` has no known interval.
    """
    each = [run.bounds.get(metric) or {} for run in family.runs]
    if not any(each):
        unknown = np.full(len(steps), np.nan)
        return unknown, unknown, unknown
    columns = np.array(
        [
            _columns([{s: getattr(b, name) for s, b in of.items()} for of in each], steps)
            for name in ("low", "high", "questions")
        ]
    )
    columns[:, ~np.isfinite(runs)] = np.nan
    known = np.all(np.isfinite(columns[0]) == np.isfinite(runs), axis=0)
    least, most, questions = np.where(
        known, np.nansum(columns, 1) / np.isfinite(runs).sum(0), np.nan
    )
    return least, most, questions


def _shared(by_run: Sequence[Mapping[int, float]], steps: Sequence[int]) -> list[int]:
    """Returns the steps that every run has whose values begin before and end after; or all."""
    known = [one for one in by_run if one]
    ends = [(min(one), max(one)) for one in known]
    shared = [
        step
        for step in steps
        if all(
            step in one or not low <= step <= high
            for one, (low, high) in zip(known, ends, strict=True)
        )
    ]
    return shared or list(steps)


def _columns(by_run: Sequence[Mapping[int, float]], steps: Sequence[int]) -> np.ndarray:
    """Returns float64[runs, steps], with NaN where a run has no value."""
    return np.array([[one.get(s, math.nan) for s in steps] for one in by_run], np.float64)


def _quantile(freedom: np.ndarray) -> np.ndarray:
    from scipy.special import stdtrit

    return stdtrit(freedom, (1 + LEVEL) / 2)


def thinned(values: Series, points: int) -> Series:
    """Returns at most `points` steps, spaced evenly, with the first and the last."""
    if len(values.steps) <= points:
        return values
    keep = np.unique(np.linspace(0, len(values.steps) - 1, points).round().astype(int))
    return Series(**{name: array[..., keep] for name, array in vars(values).items()})
