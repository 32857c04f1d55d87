"""Countdown: make the target from the given numbers, each used once.

The content of a question decides to which of three parts it belongs. The parts share no question:
`base` (for the traces of a base model, see countdown_traces), `train` and `held_out`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders import grader
from sdjax.graders.answer import expression
from sdjax.records import Example
from sdjax.tasks import Task, is_held_out
from sdjax.tasks.countdown_search import (
    LIMIT,
    OPERATIONS,
    direct,
    reaches,
    results,
    solutions,
    terms,
)

Part = Literal["base", "train", "held_out"]
# A range that gives no new question this many times in a row has run out of questions.
PATIENCE = 5000


@dataclass(frozen=True, kw_only=True)
class Countdown(config.TaskConfig):
    """Use 3, 4 and 5 to make 17. Every question has a solution in whole numbers up to 99."""

    name: str = "countdown"
    """The task's name in metrics and records."""
    numbers: int = 3
    """How many numbers a question has."""
    low: int = 1
    """Smallest number that occurs."""
    high: int = 40
    """Largest number that occurs."""
    target_low: int = 10
    target_high: int = 49
    operations: str = "+-*"
    """Operations of the expression from which a question is made. Answers may use all four."""
    needs: str = ""
    """Every question needs at least one of these operations; if empty, any question is allowed.
    The check tries all expressions, so it is slow for many numbers."""
    size: int = 512
    """Distinct training questions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require = config.require
        require(2 <= self.numbers <= 6, "task.numbers", self.numbers, "must be 2 to 6")
        require(1 <= self.low, "task.low", self.low, "must be at least 1")
        require(
            self.low < self.high <= LIMIT,
            "task.high",
            self.high,
            f"must lie over task.low ({self.low}) and be at most {LIMIT}",
        )
        require(
            0 <= self.target_low <= self.target_high <= LIMIT,
            "task.target_high",
            self.target_high,
            f"must be at least task.target_low ({self.target_low}) and at most {LIMIT}",
        )
        require(self.size >= 1, "task.size", self.size, "must be at least 1")
        good = bool(self.operations) and set(self.operations) <= set(OPERATIONS)
        require(good, "task.operations", self.operations, f"must be some of {OPERATIONS}")
        good = set(self.needs) <= set(self.operations)
        require(
            good, "task.needs", self.needs, f"must be some of task.operations {self.operations}"
        )


@dataclass(frozen=True)
class Question:
    """The numbers, in the order of the question's text, and the target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def key(self) -> str:
        """Returns a text that does not depend on the order of the numbers."""
        return expression.answer(sorted(self.numbers), self.target)

    @property
    def part(self) -> Part:
        """Returns the part: half of all questions are `base`, a quarter each are the others."""
        if is_held_out(self.key):
            return "held_out"
        return "train" if is_held_out(f"train {self.key}", 1 / 3) else "base"

    def text(self) -> str:
        """Returns the user message."""
        *most, last = map(str, self.numbers)
        return f"Use {', '.join(most)} and {last} to make {self.target}."


def draw(cfg: Countdown, part: Part, rng: Random) -> Question:
    """Returns a question of a part. It has a solution."""
    for _ in range(PATIENCE):
        numbers = [rng.randint(cfg.low, cfg.high) for _ in range(cfg.numbers)]
        target = _reached(cfg, numbers, rng)
        if target is None or target in numbers:
            continue
        if not cfg.target_low <= target <= cfg.target_high:
            continue
        question = Question(tuple(numbers), target)
        if question.part == part and not _without(question, cfg.needs):
            return question
    raise UserError(
        f"task.target_high is {cfg.target_high}: no question found from numbers {cfg.low} to "
        f"{cfg.high} with {cfg.operations} that needs {cfg.needs!r}; widen the range"
    )


def _reached(cfg: Countdown, numbers: list[int], rng: Random) -> int | None:
    """Returns the value of a random expression of the numbers, None if a step is not allowed."""
    left = list(numbers)
    while len(left) > 1:
        rng.shuffle(left)
        a, b = left.pop(), left.pop()
        choices = results(max(a, b), min(a, b), cfg.operations)
        if not choices:
            return None
        left.append(rng.choice(choices)[1])
    return left[0]


def _without(question: Question, needs: str) -> bool:
    """Returns whether the question has a solution without the operations in `needs`."""
    others = "".join(o for o in OPERATIONS if o not in needs)
    return bool(needs) and reaches(question.numbers, question.target, others)


def up_to(cfg: Countdown, part: Part, count: int) -> list[Question]:
    """Returns up to `count` distinct questions of a part; fewer if the range runs out.

    A smaller count gives the first questions of a larger count.
    """
    found: dict[str, Question] = {}
    fruitless, rng = 0, Random(f"{cfg.seed}/{part}")
    while len(found) < count and fruitless < PATIENCE:
        question = draw(cfg, part, rng)
        fruitless = 0 if question.key not in found else fruitless + 1
        found.setdefault(question.key, question)
    return list(found.values())


def _distinct(cfg: Countdown, part: Part, count: int, field: str) -> list[Question]:
    found = up_to(cfg, part, count)
    if len(found) < count:
        raise UserError(
            f"{field} is {count}: only {len(found)} distinct questions found; lower it or widen "
            "the range of numbers and targets"
        )
    return found


def load(cfg: Countdown, data: config.Data) -> Task:
    """Returns the task. It reads no files, so it does not use `data`."""
    del data
    train = _distinct(cfg, "train", cfg.size, "task.size")
    held_out = _distinct(cfg, "held_out", cfg.held_out, "task.held_out")
    return Task(
        name=cfg.name,
        train=[_example(cfg, question) for question in train],
        held_out=[_example(cfg, question) for question in held_out],
        grader=grader("expression"),
    )


def _example(cfg: Countdown, question: Question) -> Example:
    path = next(solutions(terms(question.numbers), question.target))
    return Example(
        id=question.key,
        messages=({"role": "user", "content": question.text()},),
        answer=question.key,
        solution=direct(path),
        task=cfg.name,
    )
