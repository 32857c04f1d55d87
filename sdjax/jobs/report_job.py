"""Compares runs: writes one HTML file, prints tables, and writes plots if the config wants them."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from sdjax.analysis import epistemic
from sdjax.analysis.report import (
    blocks,
    facts,
    figures,
    held_out_answers,
    page,
    plots,
    read,
    rollouts,
    run_families,
    words,
)
from sdjax.config import Report
from sdjax.errors import UserError
from sdjax.io.files import write_text

ANSWERS = 0.25
"""Share of the file's largest size that held-out answers may take."""


def run(cfg: Report) -> None:
    """Writes the report, its tables and plots; reads and checks all runs before."""
    _check(cfg)
    runs = read.runs(cfg.runs)
    lexicon = cfg.lexicon or runs[0].lexicon
    lexicons = list(dict.fromkeys((lexicon, "paper", "word")))
    surveys = [rollouts.survey(run, lexicons) for run in runs]
    changes = [
        change
        for run, survey in zip(runs, surveys, strict=True)
        for change in (*words.of_evaluations(run), *words.of_steps(run.name, survey.counts))
    ]
    groups = run_families.of(runs)
    family_of = {run.name: i for i, family in enumerate(groups) for run in family.runs}
    first, more = figures.page(runs, groups, changes)
    report = first | {
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "family": family_of[run.name],
                "last": run.steps,
                "rollouts": survey.rows,
                **facts.of(run),
            }
            for run, survey in zip(runs, surveys, strict=True)
        ],
        "lexicon": list(epistemic.lexicon(lexicon).words),
    }
    answers = held_out_answers.fit(runs, lexicon, int(1e6 * ANSWERS * cfg.max_mb))
    others = {"more": blocks.packed(more), "answers": blocks.packed(answers.index)}
    others |= answers.blocks
    nothing = page.assemble(cfg.title, report, blocks.CompressedBlock(), others)
    limit = int(1e6 * cfg.max_mb) - len(nothing) - 10_000
    shown = blocks.fit(runs, surveys, lexicon, cfg.max_rollouts, limit)
    text = page.assemble(cfg.title, report | {"rollout_note": shown.note}, shown, others)
    out = Path(cfg.out)
    write_text(out, text)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for line in figures.sentences(groups):
        console.print(line, markup=False, soft_wrap=True)
    for table in figures.tables(runs, groups, changes):
        console.print(table)
    if cfg.plots is not None:
        for file in plots.write(groups, Path(cfg.plots)):
            console.print(f"plot: {file}", markup=False, soft_wrap=True)
    size = f"{shown.rows:,} rollouts, {len(text.encode()) / 1e6:.1f} MB"
    console.print(f"report: {out} ({size})", markup=False, soft_wrap=True)
    if shown.note:
        console.print(f"  {shown.note}", markup=False, soft_wrap=True)


def _check(cfg: Report) -> None:
    """Raises UserError if `out` cannot be written, or for a lexicon or library that is missing."""
    out = Path(cfg.out)
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise UserError(
            f"out is {cfg.out!r}: cannot be written; name a file in a directory of yours"
        )
    if cfg.lexicon is not None:
        epistemic.lexicon(cfg.lexicon)
    if cfg.plots is not None:
        plots.library()
