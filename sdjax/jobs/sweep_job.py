"""Trains once for each value of a config field and compares the trainings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.analysis import coverage
from sdjax.config.load import type_problem
from sdjax.errors import UserError
from sdjax.io import run_dir
from sdjax.io.files import write_text
from sdjax.jobs import report_job, train_job
from sdjax.parallel import hosts
from sdjax.training import resume

# A training writes this file at its end.
FINISHED = "evaluations.json"


def run(cfg: config.Sweep) -> None:
    """Runs the trainings that are not finished, and writes the comparison after each."""
    plan = list(trainings(cfg))
    finished = hosts.of_first([_is_finished(one) for *_, one in plan])
    run_dir.check_same(cfg, sum(finished))
    claimed = run_dir.claim(cfg.out, cfg, resume=cfg.resume, after=sum(finished))
    if 0 < sum(finished) < len(plan):
        run_dir.record(claimed, cfg, sum(finished), {})
    with run_dir.pushed(claimed):
        _train_and_compare(cfg, plan, finished, claimed.local)


def _train_and_compare(
    cfg: config.Sweep,
    plan: Sequence[tuple[str, int | float | str, config.Train]],
    finished: Sequence[bool],
    out: Path,
) -> None:
    """Runs the trainings of a plan that are not finished, and writes the comparison after each."""
    rows: list[dict[str, Any]] = []
    for number, ((name, value, one), is_finished) in enumerate(zip(plan, finished, strict=True), 1):
        folder = Path(one.out)
        title = f"{number} of {len(plan)}: {name}, {cfg.axis} {value}"
        if is_finished:
            hosts.note(f"{title}: finished before")
        else:
            hosts.note(title)
            train_job.run(one)
        rows.append({"run": name, "value": value} | coverage.of_run(folder))
        if jax.process_index() == 0:
            _write(cfg, rows, out)
    if jax.process_index() == 0:
        if cfg.report:
            runs = tuple(one.out for *_, one in plan)
            report_job.run(config.Report(runs=runs, out=str(out / "report.html"), title=out.name))
        print((out / "coverage.md").read_text(encoding="utf-8").rstrip())


def _is_finished(one: config.Train) -> bool:
    """Returns whether a training has ended, and its number of steps is still the wanted one.

    Raises UserError if it was made with another config.
    """
    changed = {c.name for c in run_dir.check_same(one, resume.done(one.out))} if one.resume else ()
    return (Path(one.out) / FINISHED).exists() and "steps" not in changed


def trainings(cfg: config.Sweep) -> Iterator[tuple[str, int | float | str, config.Train]]:
    """Yields name, value and config of each training: all trainings of a value, then the next.

    Raises UserError if the axis is no field of a training, or a value does not fit the field.
    """
    for value in cfg.values:
        for name, base in cfg.runs.items():
            varied = _with(base, cfg.axis, value, cfg.axis)
            folder = Path(cfg.out) / name / str(value)
            yield name, value, replace(varied, out=str(folder), resume=cfg.resume, allow=cfg.allow)


def _with(section: Any, path: str, value: Any, axis: str) -> Any:
    """Returns the section with `value` in the field at `path`; `axis` is the whole path."""
    name, _, rest = path.partition(".")
    fields = section if isinstance(section, dict) else _fields(section)
    known = ", ".join(f for f in fields if f not in ("out", "resume", "allow")) or "none"
    config.require(name in fields, "axis", axis, f"no field {name!r}; there are {known}")
    new = _with(fields[name], rest, value, axis) if rest else value
    if isinstance(section, dict):
        return {**section, name: new}
    # Types are checked before `replace`, because the section's own checks rely on them.
    if problem := type_problem(type(section), name, new):
        raise UserError(f"values has {value!r}: {axis.removesuffix(name)}{problem}")
    return replace(section, **{name: new})


def _fields(section: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass by name; {} for any other value."""
    if not dataclasses.is_dataclass(section):
        return {}
    return {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}


def _write(cfg: config.Sweep, rows: list[dict[str, Any]], out: Path) -> None:
    """Writes coverage.json and coverage.md."""
    figures = {"axis": cfg.axis, "trainings": rows}
    write_text(out / "coverage.json", json.dumps(figures, indent=2) + "\n")
    write_text(out / "coverage.md", coverage.to_markdown(cfg.axis, rows) + "\n")
