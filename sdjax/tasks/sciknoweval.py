"""Multiple choice: SciKnowEval (level L3) as the SDPO paper's code has it, or rows of yours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sdjax import config
from sdjax.data.rows import RowError, Skipped, convert_rows, text_field
from sdjax.data.sources import read_rows
from sdjax.own_functions import Function
from sdjax.records import Example
from sdjax.tasks import Task
from sdjax.tasks.from_rows import RowTask, divided, letter, options, with_last

HOME = "https://raw.githubusercontent.com/lasgroup/SDPO/main/datasets/sciknoweval"
QUESTIONS = ("prompt", "question", "problem", "messages", "conversations")


@dataclass(frozen=True, kw_only=True)
class SciKnowEval(RowTask):
    """Multiple-choice questions: of one scientific domain, or of files of yours."""

    domain: Literal["biology", "chemistry", "material", "physics"] = "biology"
    """The domain of the questions, unless `train` or `test` names a source."""
    train: str = ""
    """Source of rows with prompt, answer (a letter) and perhaps system, as sdjax/data/sources.py
    describes sources. If `train` and `test` are empty, the domain's files in the SDPO paper's
    repository. Empty with `test`: for evaluation only."""
    test: str = ""
    """Source of the held-out rows. Rows whose prompt occurs in `train` are left out. If empty
    beside `train`, rows of `train` are held out."""
    held_out: int = 1000
    """Rows of `test` that are used, at most; or the number of rows held out of `train`. 0: none."""
    choices: str = "choices"
    """Column of the options: a list, which follows the question as "A: ...", "B: ..." on lines of
    their own. The answer may then be a letter, an option's text, or its index from 0. Rows without
    this column have the options in the question."""
    grader: Function = "choice"
    """choice reads the letter in an <answer>, a box or a sentence. choice_reference accepts only
    the letter alone between the tags, as the papers' code does. Or a function of yours."""

    RULES: ClassVar[tuple[str, ...]] = ("choice", "choice_reference")


def load(cfg: SciKnowEval, data: config.Data) -> Task:
    """Returns the task of the two files."""
    train, test = cfg.train, cfg.test
    if not train and not test:
        train, test = (f"{HOME}/{cfg.domain}/{split}.json" for split in ("train", "test"))
    examples, held_out, skipped = divided(
        cfg, lambda file, split: _read(cfg, file, split, data), train, test
    )
    return Task(
        name="sciknoweval",
        train=examples,
        held_out=held_out,
        grader=cfg.task_grader(),
        skipped=skipped,
    )


def _read(
    cfg: SciKnowEval, file: str, split: str, data: config.Data
) -> tuple[list[Example], tuple[Skipped, ...]]:
    def convert(row: dict[str, Any], number: int) -> Example:
        name = cfg.answer_path(row)
        messages = cfg.prompt(row, QUESTIONS)
        choices = options(row, cfg.choices) if cfg.choices else None
        if choices is None:
            answer = text_field(row, name)
            if not (len(answer) == 1 and "A" <= answer <= "Z"):
                raise RowError(f"field '{name}' is {answer[:40]!r}, not one letter")
        else:
            answer = letter(row, name, choices)
            listed = "\n".join(f"{x}: {option}" for x, option in choices.items())
            messages = with_last(messages, lambda question: f"{question}\n\n{listed}")
        return Example(
            id=f"{split}-{number}",
            messages=messages,
            answer=answer,
            task="sciknoweval",
            columns=cfg.columns(row),
        )

    return convert_rows(file, read_rows(file), convert, data.on_bad_row)
