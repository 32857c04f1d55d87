"""SciKnowEval (level L3, multiple choice) in the row format of the SDPO paper's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sdjax import config
from sdjax.data.rows import RowError, Skipped, convert_rows, text_field, unseen
from sdjax.data.sources import read_rows
from sdjax.graders import grader
from sdjax.records import Example, Message
from sdjax.tasks import Task

HOME = "https://raw.githubusercontent.com/lasgroup/SDPO/main/datasets/sciknoweval"


@dataclass(frozen=True, kw_only=True)
class SciKnowEval(config.TaskConfig):
    """Multiple-choice questions of one scientific domain, from two files."""

    domain: Literal["biology", "chemistry", "material", "physics"] = "biology"
    """The domain of the questions, unless `train` and `test` name files."""
    train: str = ""
    """Source of rows with prompt, system and answer, as sdjax/data/sources.py describes sources.
    If empty, the domain's file in the SDPO paper's repository."""
    test: str = ""
    """Source of the held-out rows. Rows whose prompt occurs in `train` are left out."""
    held_out: int = 1000
    """Rows of `test` that are used, at most."""
    grader: Literal["choice", "choice_reference"] = "choice"
    """choice reads the letter in an <answer>, a box or a sentence. choice_reference accepts only
    the letter alone between the tags, as the papers' code does."""


def load(cfg: SciKnowEval, data: config.Data) -> Task:
    """Returns the task of the two files."""
    train_file = cfg.train or f"{HOME}/{cfg.domain}/train.json"
    test_file = cfg.test or f"{HOME}/{cfg.domain}/test.json"
    train, skipped_train = _read(train_file, "train", data)
    test, skipped_test = _read(test_file, "test", data)
    held_out, repeated = unseen(test, train, test_file)
    return Task(
        name="sciknoweval",
        train=train,
        held_out=held_out[: cfg.held_out],
        grader=grader(cfg.grader),
        skipped=skipped_train + skipped_test + repeated,
    )


def _read(file: str, split: str, data: config.Data) -> tuple[list[Example], tuple[Skipped, ...]]:
    def convert(row: dict[str, Any], number: int) -> Example:
        answer = text_field(row, "answer")
        if not (len(answer) == 1 and "A" <= answer <= "Z"):
            raise RowError(f"field 'answer' is {answer[:40]!r}, not one letter")
        user: Message = {"role": "user", "content": text_field(row, "prompt")}
        system: Message = {"role": "system", "content": text_field(row, "system")}
        return Example(
            id=f"{split}-{number}", messages=(system, user), answer=answer, task="sciknoweval"
        )

    return convert_rows(file, read_rows(file), convert, data.on_bad_row)
