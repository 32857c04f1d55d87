"""Writes tables and plots of a remedy league, from the run directories of configs/tiny/league.sh.

    python dev/league_table.py RUNS [--page FILE] [--plots DIR]

RUNS holds a run directory ARM_SEED of each training. It gets league.md, league.json with the
figures of each seed, and plots/ (which needs matplotlib). --page writes the tables into FILE too,
between two comments, in place of those that are there. Trainings that are not finished are left
out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.analysis import accuracy, markdown
from sdjax.analysis.accuracy import Estimate
from sdjax.analysis.report import clock, plots, read
from sdjax.analysis.report.clock import Clock
from sdjax.analysis.report.read import RunRecord
from sdjax.errors import UserError, writing
from sdjax.io.files import replacing, write_text

FIRST, LAST = "<!-- league: dev/league_table.py writes what follows -->", "<!-- end of league -->"
FORKS = "eval/fork_rate"
BEFORE = "before training"


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """A finished training, its seed's number, and what it had used up after each step."""

    run: RunRecord
    arm: str
    seed: int
    clock: Clock

    @property
    def evaluated(self) -> list[int]:
        """The steps of its evaluations, the first one before training."""
        return [int(one["step"]) for one in self.run.evaluations]

    def used(self, step: int) -> tuple[float, float]:
        """Returns the generated tokens and the seconds up to a step."""
        at = int(np.searchsorted(self.clock.steps, step))
        return float(self.clock.tokens[at]), float(self.clock.seconds[at])


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What an arm measured at one step; all seeds together, and each of them."""

    arm: str
    step: int
    accuracies: dict[str, Estimate]
    """By set; the interval is over questions and their answers."""
    figures: list[dict[str, float]]
    """Of each seed, as the metrics are named."""

    def cells(self, names: Sequence[str]) -> list[str]:
        """Returns a row of a table."""
        return [
            self.arm,
            str(len(self.figures)),
            str(self.step),
            *(f"{_short(e.value)} ({_short(e.low)}-{_short(e.high)})" for e in self._estimates()),
            *(_spread([f[name] for f in self.figures if name in f]) for name in names),
        ]

    def _estimates(self) -> list[Estimate]:
        return list(self.accuracies.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        pooled = {name: vars(estimate) for name, estimate in self.accuracies.items()}
        return {"arm": self.arm, "step": self.step, "accuracy": pooled, "seeds": self.figures}


COLUMNS = {
    "tokens": "tokens",
    "cut_off": "cut off",
    "doubt": "doubt",
    FORKS: "fork rate",
    "generated": "generated, 1,000 tokens",
    "seconds": "seconds",
}
"""Figures of the table after the accuracies; one that no run has is left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files; returns the exit code, 2 for a mistake that the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--plots", type=Path)
    given = parser.parse_args(arguments)
    try:
        write(given.runs, given.page, given.plots)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(folder: Path, page: Path | None = None, pictures: Path | None = None) -> None:
    """Writes league.md, league.json, the plots and the page's tables."""
    old = None if page is None else _page_parts(page)
    runs = timed_runs(folder)
    parts, figures, drawn = [_caption(runs)], [], []
    for title, members in leagues(runs, folder).items():
        tables = {"all steps": at_the_end(members), "equal tokens": at_equal_tokens(members)}
        before = result(BEFORE, members[:1], 0)
        within = f"within {least_total(members) / 1000:,.0f} thousand tokens, the fewest of a run"
        for kind, when in (("all steps", "after all steps"), ("equal tokens", within)):
            parts += [f"**{title}: {when}**", table([before, *tables[kind]])]
        figures.append(
            {"league": title, BEFORE: before.to_dict()}
            | {kind: [row.to_dict() for row in rows] for kind, rows in tables.items()}
        )
        drawn.append((title, before, tables["all steps"]))
    text = "\n\n".join(parts) + "\n"
    write_text(folder / "league.json", json.dumps(figures, indent=2) + "\n")
    write_text(folder / "league.md", text)
    if old is not None and page is not None:
        write_text(page, f"{old[0]}{FIRST}\n\n{text}\n{LAST}{old[1]}")
    print(text, end="")
    for title, before, rows in drawn:
        draw(title, before, rows, pictures or folder / "plots")


def _page_parts(page: Path) -> tuple[str, str]:
    """Returns the text before and after the tables of a page."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: cannot be read ({error.strerror})") from None
    before, first, rest = text.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not first or not last:
        raise UserError(f"{page}: needs the line {FIRST!r} and after it the line {LAST!r}")
    return before, after


def timed_runs(folder: Path) -> list[TimedRun]:
    """Returns the finished trainings of a folder, in the order of their arms and seeds.

    Raises UserError without any, or if they come from different devices, whose figures differ.
    """
    paths = [file.parent for file in sorted(folder.glob("*_*/config.json"))]
    ended = [path for path in paths if (path / "evaluations.json").is_file()]
    for path in paths:
        if path not in ended:
            print(f"{path}: not finished; left out", file=sys.stderr)
    if not ended:
        raise UserError(f"{folder}: holds no finished training ARM_SEED of configs/tiny/league.sh")
    out = []
    for run in read.runs([str(path) for path in ended]):
        arm, _, seed = run.folder.name.rpartition("_")
        spent = clock.of_run(run)
        if not seed.isdigit() or spent is None or run.evaluations[0]["step"] != 0:
            raise UserError(f"{run.folder}: is no training ARM_SEED with times and evaluations")
        out.append(TimedRun(run=run, arm=arm, seed=int(seed), clock=spent))
    devices = sorted({_device(one.run) for one in out})
    if len(devices) > 1:
        raise UserError(
            f"{folder}: its runs come from {' and '.join(devices)}; give each a folder of its own"
        )
    return sorted(out, key=lambda one: (one.arm, one.seed))


def _device(run: RunRecord) -> str:
    made = (run.record.get("starts") or [{}])[-1]
    return f"{made.get('devices', '?')} x {made.get('device', 'unknown device')}"


def _caption(runs: Sequence[TimedRun]) -> str:
    """Returns a sentence on device, versions and columns."""
    starts = [(one.run.record.get("starts") or [{}])[-1] for one in runs]
    programs = {f"{n} {made[n]}" for made in starts for n in ("sdjax", "jax") if n in made}
    cfg = runs[0].run.config["eval"]
    return (
        f"{_device(runs[0].run)}, {', '.join(sorted(programs))}. Accuracy: share of right answers "
        f"to {cfg['examples']} questions x {cfg['k']} per seed. Its 95 % interval is over "
        "questions and their answers, all seeds together. Other figures are means over seeds, from "
        "the least to the most. Tokens, cut off and doubt (epistemic words per 1,000 tokens) are "
        "in domain. Seconds are those of the steps, without evaluations."
    )


def leagues(runs: Sequence[TimedRun], folder: Path) -> dict[str, list[TimedRun]]:
    """Returns the runs that share model and task, by a title that names both.

    A model of the league's own, in a folder of `folder`, has that folder's name.
    """
    out: dict[tuple[str, str], list[TimedRun]] = {}
    for one in runs:
        cfg = one.run.config
        model = str(cfg["model"]["path"]).removeprefix(f"{folder}/").removesuffix("/base/model")
        tasks = json.dumps([cfg["task"], cfg.get("out_of_domain")])
        out.setdefault((model, tasks), []).append(one)
    titles: dict[str, list[TimedRun]] = {}
    for (model, _), members in out.items():
        task = members[0].run.config["task"]
        title = f"{model}, {task.get('name') or task['class']}"
        titles[f"{title} ({len(titles) + 1})" if title in titles else title] = members
    return titles


def at_the_end(runs: Sequence[TimedRun]) -> list[ArmResult]:
    """Returns each arm at its last evaluation."""
    return [result(arm, members, _shared(members)[-1]) for arm, members in arms(runs)]


def at_equal_tokens(runs: Sequence[TimedRun]) -> list[ArmResult]:
    """Returns each arm at its last evaluation before any seed exceeds the least total of tokens."""
    least = least_total(runs)
    return [
        result(
            arm,
            members,
            [s for s in _shared(members) if all(m.used(s)[0] <= least for m in members)][-1],
        )
        for arm, members in arms(runs)
    ]


def least_total(runs: Sequence[TimedRun]) -> float:
    """Returns how many tokens the run generated that generated the fewest."""
    return min(one.used(one.evaluated[-1])[0] for one in runs)


def _shared(runs: Sequence[TimedRun]) -> list[int]:
    """Returns the steps at which all runs of an arm were evaluated; 0 is one of them."""
    return sorted(set.intersection(*(set(one.evaluated) for one in runs)))


def arms(runs: Sequence[TimedRun]) -> Iterator[tuple[str, list[TimedRun]]]:
    """Yields each arm with its runs."""
    for arm in dict.fromkeys(one.arm for one in runs):
        yield arm, [one for one in runs if one.arm == arm]


def result(arm: str, runs: Sequence[TimedRun], step: int) -> ArmResult:
    """Returns the figures of an arm's runs at a step."""
    right = [_right(one.run, step) for one in runs]
    accuracies = {}
    for name in right[0]:
        # A question's score is over all answers to it; the interval then knows of all of them.
        of = {i: np.concatenate([r[name][i] for r in right]) for i in right[0][name]}
        scores = np.array([[x.mean() for x in of.values()]])
        (accuracies[name],) = accuracy.intervals(scores, completions=len(next(iter(of.values()))))
    return ArmResult(
        arm=arm, step=step, accuracies=accuracies, figures=[_figures(one, step) for one in runs]
    )


def _right(run: RunRecord, step: int) -> dict[str, dict[str, np.ndarray]]:
    """Returns which answers to each question are right, by set and question; in domain first."""
    file = run.folder / "answers" / f"{step:06d}.jsonl"
    if file not in run.answers:
        raise UserError(f"{file}: is missing; the run's accuracies have their intervals from it")
    out: dict[str, dict[str, list[bool]]] = {}
    for _, row in read.rows(file):
        out.setdefault(row["set"], {}).setdefault(row["id"], []).append(row["correct"])
    return {
        (read.IN_DOMAIN if number == 0 else name): {i: np.array(x) for i, x in of.items()}
        for number, (name, of) in enumerate(out.items())
    }


def _figures(one: TimedRun, step: int) -> dict[str, float]:
    """Returns the figures of a run at a step."""
    (found,) = (e for e in one.run.evaluations if e["step"] == step)
    tokens, seconds = one.used(step)
    out = {
        "seed": one.seed,
        "tokens": found["lengths"]["mean"],
        "cut_off": found["lengths"]["truncated"],
        "doubt": found["epistemic"]["per_1000_tokens"],
        "generated": tokens / 1000,
        "seconds": seconds,
    }
    for name, of in read.sets(found):
        score = of["accuracy"][f"avg@{of['accuracy']['k']}"]
        out[f"accuracy, {name}"] = score["value"]
        out[f"doubt, {name}"] = of["epistemic"]["per_1000_tokens"]
    lines = [row for row in one.run.metrics if row["step"] == step]
    return out | {name: row[name] for row in lines for name in row if name.endswith("/fork_rate")}


def table(rows: Sequence[ArmResult]) -> str:
    """Returns a Markdown table, a row per arm."""
    names = [name for name in COLUMNS if any(name in f for row in rows for f in row.figures)]
    head = ["arm", "seeds", "step", *rows[0].accuracies, *(COLUMNS[name] for name in names)]
    return markdown.table(head, [row.cells(names) for row in rows])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    ends = "" if len(values) == 1 else f" ({_short(min(values))}-{_short(max(values))})"
    return _short(float(np.mean(values))) + ends


def _short(value: float) -> str:
    """Returns a share with two digits, and a larger number whole."""
    return f"{value:.2f}" if abs(value) <= 1 else f"{value:,.0f}"


def draw(title: str, before: ArmResult, rows: Sequence[ArmResult], folder: Path) -> None:
    """Writes two plots: the accuracy of each arm by set, and accuracy against doubt."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", title).strip("_").lower()
    for kind, figure in (
        ("accuracy", _accuracy_plot(before, rows)),
        ("doubt", _doubt_plot(before, rows)),
    ):
        figure.suptitle(title, fontsize=9)
        with replacing(folder / f"{name}_{kind}.png") as new:
            figure.savefig(new, dpi=200, format="png")


def _accuracy_plot(before: ArmResult, rows: Sequence[ArmResult]):
    """Returns a panel per set: each arm's accuracy with its interval, and that before training."""
    sets = list(before.accuracies)
    figure = plots.library().Figure(
        figsize=(2.2 + 1.7 * len(sets), 1.2 + 0.22 * len(rows)), layout="constrained"
    )
    panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    at = np.arange(len(rows))[::-1]
    for axes, name in zip(panels, sets, strict=True):
        found = [row.accuracies[name] for row in rows]
        value = np.array([e.value for e in found])
        sides = np.array([[e.value - e.low for e in found], [e.high - e.value for e in found]])
        axes.errorbar(value, at, xerr=sides, fmt="o", markersize=4, color=plots.COLOURS[0])
        axes.axvline(before.accuracies[name].value, color=plots.COLOURS[-1], linestyle="--")
        axes.set(title=name, xlim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set_yticks(at, [row.arm for row in rows], fontsize=7)
    return figure


def _doubt_plot(before: ArmResult, rows: Sequence[ArmResult]):
    """Returns the mean accuracy out of domain (in domain without other sets) against doubt."""
    figure = plots.library().Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for row in (before, *rows):
        doubt = float(np.mean([f["doubt"] for f in row.figures]))
        own, *others = [e.value for e in row.accuracies.values()]
        colour = plots.COLOURS[4 if row is before else 0]
        axes.plot(doubt, float(np.mean(others or [own])), "o", markersize=4, color=colour)
        axes.annotate(
            row.arm,
            (doubt, float(np.mean(others or [own]))),
            fontsize=6,
            xytext=(3, 2),
            textcoords="offset points",
        )
    where = "out of domain" if len(before.accuracies) > 1 else "in domain"
    axes.set(xlabel="epistemic words per 1,000 tokens, in domain", ylabel=f"share right, {where}")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
