"""Tasks: examples, their prompts, and how a completion is graded. One file a task."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from sdjax import config
from sdjax.data.rows import Skipped
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.records import Example, Grade


@dataclass(frozen=True, kw_only=True)
class Task:
    """What training and evaluation need to know of a task.

    `train` and `held_out` share no question. Both are random access: item i is the same in every
    process. `skipped` lists the rows of data files that are not used, and why.
    """

    name: str
    train: Sequence[Example]
    held_out: Sequence[Example]
    grader: Grader
    skipped: tuple[Skipped, ...] = ()

    def grade(self, text: str, example: Example, *, truncated: bool) -> Grade:
        """Returns the grade of one completion's text."""
        return self.grade_many([text], [example], [truncated])[0]

    def grade_many(
        self, texts: Sequence[str], examples: Sequence[Example], truncated: Sequence[bool]
    ) -> list[Grade]:
        """Returns the grades of many completions, on all cores where a grader uses processes."""
        return self.grader(
            [
                Attempt(text, example.answer, cut, example.id)
                for text, example, cut in zip(texts, examples, truncated, strict=True)
            ]
        )


def load(cfg: config.TaskConfig, data: config.Data) -> Task:
    """Returns the task that a config describes, loaded by the module that defines its class."""
    return importlib.import_module(type(cfg).__module__).load(cfg, data)
