"""GPQA: multiple-choice questions that experts wrote (arXiv:2311.12022), for evaluation only.

Its authors ask that nobody publishes examples in plain text. A run's answers.jsonl has them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax import config
from sdjax.data.rows import convert_rows, text_field
from sdjax.data.sources import Row, read_rows
from sdjax.errors import UserError
from sdjax.graders import grader
from sdjax.records import Example
from sdjax.tasks import Task

SETS = {
    name: f"hf://datasets/Idavidrein/gpqa/gpqa_{name}.csv"
    for name in ("diamond", "main", "extended")
}
"""The source of each set. Access needs HF_TOKEN of an account that has accepted the terms."""
QUESTION = "Question"
OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"
INSTRUCTION = (
    "Answer the following multiple choice question. The last line of your response should be of "
    "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think "
    "step by step before answering."
)
"""The words of OpenAI's simple-evals."""


@dataclass(frozen=True, kw_only=True)
class GPQA(config.TaskConfig):
    """Multiple-choice questions of GPQA, with shuffled options."""

    test: str = "diamond"
    """diamond (198 questions), main (448) or extended (546), which need HF_TOKEN. Or a source of
    rows with the same columns, as sdjax/data/sources.py describes sources."""
    held_out: int = 10_000
    """Questions that are used, at most, from the first."""
    seed: int = 0
    """Seed of the order of the options. It is drawn for one question after the other, so that seed
    0 gives the order of simple-evals' first round."""
    instruction: str = INSTRUCTION
    """Stands before every question."""


def load(cfg: GPQA, data: config.Data) -> Task:
    """Returns the task; it has no training examples."""
    source = SETS.get(cfg.test, cfg.test)
    if source == cfg.test and source.isidentifier() and not Path(source).exists():
        raise UserError(f"task.test is {source!r}: neither a file nor one of {', '.join(SETS)}")
    draws = random.Random(cfg.seed)

    def convert(row: dict[str, Any], number: int) -> Example:
        order = draws.sample(range(len(OPTIONS)), len(OPTIONS))
        question, *options = (text_field(row, name).strip() for name in (QUESTION, *OPTIONS))
        listed = (f"{x}) {options[i]}" for x, i in zip(LETTERS, order, strict=True))
        text = "\n\n".join((cfg.instruction, question, "\n".join(listed)))
        return Example(
            id=f"test-{number}",
            messages=({"role": "user", "content": text},),
            answer=LETTERS[order.index(0)],
            task="gpqa",
        )

    examples, skipped = convert_rows(source, _used(source), convert, data.on_bad_row)
    return Task(
        name="gpqa",
        train=[],
        held_out=examples[: cfg.held_out],
        grader=grader("choice"),
        skipped=skipped,
    )


def _used(source: str) -> Iterator[Row]:
    """Yields the rows of a source with the columns that the task reads, of some 60."""
    for number, row in read_rows(source):
        if isinstance(row, dict):
            row = {name: row[name] for name in (QUESTION, *OPTIONS) if name in row}
        yield number, row
