"""Tasks: examples, their prompts, and the grader of the completions. One file per task.

A task is two things in one file, here or in a config file of yours:

- a class that inherits from `sdjax.config.TaskConfig`. Its fields are the task's settings.
- a function `load(cfg, data)`, which returns a `Task`: the examples and the grader.

docs/tasks.md shows both. Tasks divide generated questions with `is_held_out`, and take graders
from `sdjax.graders.grader`.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from sdjax import config
from sdjax.data.rows import Skipped
from sdjax.errors import UserError
from sdjax.graders import votes
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.io import progress
from sdjax.io.files import to_json
from sdjax.records import Example, Grade, Group
from sdjax.tasks.rewarding import with_rewards


@dataclass(frozen=True, kw_only=True)
class Task:
    """What `load` returns: what training and evaluation need to know of a task.

    `train` and `held_out` share no question. Both give the same item at an index in every process.
    `skipped` lists the rows of data files that are not used, and why. `TaskConfig` describes a
    task; a `Task` holds its examples.
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
        """Returns the grades of many completions; a grader with processes uses all cores.

        Raises UserError if the grader returns anything but one usable grade for each.
        """
        grades = self.grader(
            [
                Attempt(text, example.answer, cut, example.id, example.columns, example.messages)
                for text, example, cut in zip(texts, examples, truncated, strict=True)
            ]
        )
        if len(grades) != len(texts):
            raise UserError(
                f"the grader of {self.name} returned {len(grades)} grades for {len(texts)} "
                "completions: it must return one for each, in order"
            )
        for grade in grades:
            self._check(grade)
        return grades

    def _check(self, grade: Grade) -> None:
        """Raises UserError for a grade that cannot train or cannot be written."""
        if not isinstance(grade, Grade):
            raise UserError(
                f"the grader of {self.name} returned {type(grade).__name__}: it must return a "
                "sdjax.records.Grade"
            )
        if not isfinite(grade.reward):
            raise UserError(
                f"the grader of {self.name} returned the reward {grade.reward}: it must be finite"
            )
        try:
            to_json(grade.details)
        except (TypeError, RecursionError) as error:
            raise UserError(f"the grader of {self.name} returned such details: {error}") from None

    def vote_spellings(self, groups: Sequence[Group]) -> list[list[str | None]]:
        """Returns how each completion spells its vote in maj@k, None where its grade says it.

        So predictions that the grader finds equal vote together.
        """
        return votes.merged(self.grader, groups)


def load(cfg: config.TaskConfig, data: config.Data) -> Task:
    """Returns the task of a config, loaded by the module that defines the config's class.

    Its grader is under the rewards of the config. Raises UserError if that module has no function
    `load`, if `load` returns no Task, or if a reward cannot be loaded.
    """
    name = type(cfg).__name__
    if type(cfg) is config.TaskConfig:
        raise UserError("task is TaskConfig(): name a class that inherits from it")
    module = importlib.import_module(type(cfg).__module__)
    load_task = getattr(module, "load", None)
    if load_task is None:
        raise UserError(
            f"task is {name}(): {getattr(module, '__file__', module.__name__)} defines {name} but "
            "no function load; add `def load(cfg, data)`, which returns a sdjax.tasks.Task"
        )
    with progress.waiting(f"loading the task {name}"):
        task = load_task(cfg, data)
    if not isinstance(task, Task):
        raise UserError(
            f"task is {name}(): its load returned {type(task).__name__}; it must return a "
            "sdjax.tasks.Task"
        )
    return replace(task, grader=with_rewards(task.grader, cfg))


def load_others(cfgs: Mapping[str, config.TaskConfig], data: config.Data) -> dict[str, Task]:
    """Returns the tasks of `out_of_domain` by name; their errors name the fields there."""
    loaded = {}
    for name, cfg in cfgs.items():
        try:
            loaded[name] = load(cfg, data)
        except UserError as error:
            said = re.sub(r"(?<![\w.])task(?=\.[a-z]| is )", f"out_of_domain.{name}", str(error))
            raise type(error)(said) from error
    return loaded


def is_held_out(question: str, share: float = 0.25) -> bool:
    """Returns whether a generated question belongs to the held-out `share` of all questions.

    Only the text decides, so no seed, size or order can bring a held-out question into training.
    """
    digest = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
