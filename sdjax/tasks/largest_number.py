"""Questions without end: which of several numbers is the largest?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders import grader
from sdjax.records import Example
from sdjax.tasks import Task, is_held_out

PLACE = "{numbers}"


@dataclass(frozen=True, kw_only=True)
class LargestNumber(config.TaskConfig):
    """Which number is the largest? Training never runs out of questions."""

    min_numbers: int = 4
    max_numbers: int = 6
    low: int = 1
    """Smallest number that occurs."""
    high: int = 99
    """Largest number that occurs."""
    prompt: str = "Which number is the largest: {numbers}?"
    """The user message; {numbers} stands for the numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(self.min_numbers >= 2, "task.min_numbers", self.min_numbers, "at least 2")
        config.require(
            self.max_numbers >= self.min_numbers,
            "task.max_numbers",
            self.max_numbers,
            f"must be at least task.min_numbers ({self.min_numbers})",
        )
        config.require(
            self.high - self.low >= 10 * self.max_numbers,
            "task.high",
            self.high,
            f"must exceed task.low ({self.low}) by at least ten times task.max_numbers",
        )
        config.require(PLACE in self.prompt, "task.prompt", self.prompt, f"needs {PLACE}")


class Endless(Sequence[Example]):
    """Training examples. Item i depends only on the seed and i, and is never held out."""

    def __init__(self, cfg: LargestNumber) -> None:
        self._cfg = cfg

    def __len__(self) -> int:
        return 2**31 - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _example(self._cfg, "train", index)


def load(cfg: LargestNumber, data: config.Data) -> Task:
    """Returns the task. It reads no files, so it does not use `data`."""
    del data
    return Task(
        name="largest_number",
        train=Endless(cfg),
        held_out=_held_out(cfg),
        grader=grader("number"),
    )


def _held_out(cfg: LargestNumber) -> list[Example]:
    """Returns distinct held-out examples."""
    found: dict[str, Example] = {}
    index = 0
    while len(found) < cfg.held_out:
        example = _example(cfg, "held_out", index)
        found.setdefault(example.messages[0]["content"], example)
        index += 1
        if index > 100 * cfg.held_out:
            raise UserError(
                f"task.held_out is {cfg.held_out}: only {len(found)} distinct questions found; "
                "lower it or widen task.low to task.high"
            )
    return list(found.values())


def _example(cfg: LargestNumber, side: str, index: int) -> Example:
    rng = random.Random(f"{cfg.seed}/{side}/{index}")
    while True:
        count = rng.randint(cfg.min_numbers, cfg.max_numbers)
        numbers = rng.sample(range(cfg.low, cfg.high + 1), count)
        if is_held_out(repr(sorted(numbers))) == (side == "held_out"):
            break
    question = cfg.prompt.replace(PLACE, ", ".join(map(str, numbers)))
    return Example(
        id=f"{side}-{index}",
        messages=({"role": "user", "content": question},),
        answer=str(max(numbers)),
        task="largest_number",
    )
