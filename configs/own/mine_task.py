"""Your task: how a row of your file becomes a question, and what an answer earns.

Edit `row_to_example` for rows with other columns, and `reward` for another rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdjax.config import Data, TaskConfig
from sdjax.data.rows import convert_rows, text_field
from sdjax.data.sources import read_rows
from sdjax.graders import grade, grader
from sdjax.records import Example, Grade
from sdjax.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Own(TaskConfig):
    """Questions of a file. `--task.rows other.jsonl` names another one."""

    rows: str = str(Path(__file__).with_name("mine.jsonl"))
    """A .jsonl, .json or .parquet file, or a data set of the hub: hf://datasets/OWNER/NAME."""
    held_out: int = 16
    """The last rows. They are evaluated and never trained on."""
    long: int = 100
    """Words from which a correct answer earns half of the reward."""


def row_to_example(row: dict, number: int) -> Example:
    """Returns the question of one row. Wrong rows are named with file, line and column."""
    return Example(
        id=str(number),
        messages=({"role": "user", "content": text_field(row, "question")},),
        answer=text_field(row, "answer"),  # what the reward compares with
        task="mine",
    )


def reward(completion: str, answer: str, *, truncated: bool, long: int) -> Grade:
    """Returns the grade of one completion. It must accept any text, and must not raise.

    `correct` counts in the accuracy, `reward` trains, and the teacher reads `feedback` if
    reprompt.feedback is on. `truncated` says that the limit of tokens cut the completion off.
    """
    # A rule of the package (docs/graders.md): the expression uses these numbers and no others.
    correct = grade("expression", completion, answer, truncated=truncated).correct
    if correct and len(completion.split()) >= long:
        return Grade(reward=0.5, correct=True, feedback="Correct, but too long.")
    return Grade(reward=float(correct), correct=correct)


def load(cfg: Own, data: Data) -> Task:
    """Returns the task: training rows, held-out rows and the grader."""
    examples, skipped = convert_rows(cfg.rows, read_rows(cfg.rows), row_to_example, data.on_bad_row)
    train = len(examples) - cfg.held_out
    return Task(
        name="mine",
        train=examples[:train],
        held_out=examples[train:],
        grader=grader(reward, long=cfg.long),
        skipped=skipped,
    )
