"""Rewards and graders that users write: named functions, called in worker processes.

`own_worker` says how a function is called and what it may return. Here their values become grades,
and what fails becomes one line that names the row.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdjax import own_functions
from sdjax.errors import UserError
from sdjax.graders import own_worker
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.graders.workers.pool import Lost, Pool
from sdjax.records import Grade

CORRECT_FROM = 0.5
"""The least reward of a correct completion where only a number says how good it is."""
TOGETHER = 64
"""Most completions in one call of a function that takes many, or that is async."""
LOAD_S = 110.0
"""Seconds that a function's module may take to be imported."""
SPARE_S = 5.0
MOST_WORKERS = 16
"""Most processes that load one module, which may be large."""
INSIDE = "SDJAX_OWN_WORKER"
"""Set in the environment of workers, so that no worker starts workers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a reward says about one completion.

    `value` is its number, or None for "does not apply", which adds nothing. `grade` is the Grade
    that a function returned, if it did. `failed` says why there is neither.
    """

    value: float | None = None
    grade: Grade | None = None
    failed: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Failures:
    """Decides what a failure of a reward means: the end of the run, or the reward 0."""

    def __init__(self, *, stop: bool) -> None:
        self._stop = stop
        self._told: set[str] = set()

    def judgement(self, what: str, attempt: Attempt, why: str) -> Judgement:
        """Returns the judgement of a failed reward. Raises UserError if failures stop the run.

        The first failure of each kind is logged with its row.
        """
        where = row_of(attempt)
        if self._stop:
            raise UserError(
                f"{what}, {where}: {why}: mend it, or let such failures score 0 with "
                "task.on_reward_error zero"
            )
        kind = f"{what} {why.partition(':')[0]}"
        if kind not in self._told:
            self._told.add(kind)
            _log.warning("%s, %s: %s: it scores 0, as do others like it", what, where, why)
        return Judgement(value=0.0, failed=why)


def row_of(attempt: Attempt) -> str:
    """Returns the words that name the row of an attempt."""
    split, _, number = attempt.id.rpartition("-")
    if number.isdigit() and split in ("train", "test"):
        return f"row {number} of task.{split}"
    return f"question {attempt.id}"


class OwnFunction:
    """A function of the user, which judges completions in worker processes."""

    def __init__(self, name: str, field: str, limit_s: float) -> None:
        """Loads the function in a worker; raises UserError, which begins with `field`.

        `limit_s` is the time that a call may take.
        """
        if INSIDE in os.environ:
            raise UserError(
                f"{field} is {name}: its file starts a job when it is imported: put that under "
                'if __name__ == "__main__":'
            )
        self.name, self._limit_s = name, limit_s
        self._folders = own_functions.paths()
        self._pool = _pool(name.rpartition(":")[0], self._folders)
        try:
            (found,) = self._pool.map([("describe", name, self._folders)], limit_s=LOAD_S)
        except RuntimeError:
            found = Lost("died")
        if isinstance(found, Lost):
            found = {"error": "its module does not load: the process that imports it ends or hangs"}
        if "error" in found:
            raise UserError(f"{field} is {name!r}: {found['error']}")
        self._together = found["many"] or found["asynchronous"]
        # What takes many at once may hold a model, and what is async mostly waits.
        self._one_process = found["style"] == "batched" or found["asynchronous"]
        # The worker itself ends late calls of an async function, each for itself.
        self._spare_s = SPARE_S if found["asynchronous"] and not found["many"] else 0.0

    def __call__(self, attempts: Sequence[Attempt], failures: Failures) -> list[Judgement]:
        """Returns the judgement of each attempt, in order.

        Raises UserError, which names the row, for a value that is no finite reward.
        """
        size = TOGETHER if self._together else 1
        parts = [attempts[i : i + size] for i in range(0, len(attempts), size)]
        start = ("call", self.name, self._folders)
        calls = [(*start, [_item(attempt) for attempt in p], self._limit_s) for p in parts]
        limit_s = self._limit_s + self._spare_s
        # A pool starts no more workers than it has calls.
        rounds = [[one] for one in calls] if self._one_process else [calls]
        results = [r for calls in rounds for r in self._pool.map(calls, limit_s=limit_s)]
        return [
            self._judgement(attempt, outcome, failures)
            for part, result in zip(parts, results, strict=True)
            for attempt, outcome in zip(part, _outcomes(result, len(part)), strict=True)
        ]

    def _judgement(
        self, attempt: Attempt, outcome: own_worker.Outcome, failures: Failures
    ) -> Judgement:
        if "wrong" in outcome:
            raise UserError(
                f"{self.name}, {row_of(attempt)}: {outcome['wrong']}: it must return a finite "
                "number or a sdjax.records.Grade"
            )
        if "grade" in outcome:
            grade = Grade(**outcome["grade"])
            return Judgement(value=grade.reward, grade=grade)
        if "reward" in outcome:
            return Judgement(value=outcome["reward"], details=outcome.get("details", {}))
        why = outcome.get("raised")
        if "late" in outcome:
            why = f"no value in {self._limit_s:g} s (task.reward_timeout_s)"
        return failures.judgement(self.name, attempt, str(why))


def _item(attempt: Attempt) -> own_worker.CalledItem:
    return {
        "completion": attempt.text,
        "row": attempt.columns or {"answer": attempt.answer},
        "answer": attempt.answer,
        "truncated": attempt.truncated,
        "messages": list(attempt.messages),
    }


def _outcomes(result: Any, count: int) -> list[own_worker.Outcome]:
    """Returns the outcomes of a call with `count` attempts, also of one without a result."""
    if not isinstance(result, Lost):
        return list(result)
    lost: dict[str, own_worker.Outcome] = {
        "late": {"late": True},
        "died": {"raised": "its process ended"},
        "error": {"raised": "its process failed"},
    }
    return [lost[result.reason]] * count


@functools.cache
def _pool(place: str, folders: tuple[str, ...]) -> Pool:
    """Returns the workers that have loaded a module, which all of its functions share."""
    return Pool(
        "sdjax.graders.own_worker:serve",
        workers=min(os.cpu_count() or 1, MOST_WORKERS),
        memory_mb=0,
        warm_up=("warm", place, folders),
        # The accelerator belongs to the training: a second process that takes it fails.
        environment={INSIDE: "1", "JAX_PLATFORMS": "cpu"},
    )


def grader(
    name: str, *, field: str = "task.grader", limit_s: float = 10.0, stop: bool = True
) -> Grader:
    """Returns the grader of a function, whose number or Grade decides everything.

    A number from CORRECT_FROM on is correct. `limit_s` is the time that a call may take. `stop`
    says whether a failure ends the run; otherwise it scores 0.
    """
    function, failures = OwnFunction(name, field, limit_s), Failures(stop=stop)

    def grade(attempts: Sequence[Attempt]) -> list[Grade]:
        return [graded(judgement) for judgement in function(attempts, failures)]

    return grade


def graded(judgement: Judgement) -> Grade:
    """Returns the grade that a judgement alone gives."""
    if judgement.grade is not None:
        return judgement.grade
    value = judgement.value or 0.0
    details = judgement.details | ({"failed": judgement.failed} if judgement.failed else {})
    correct = value >= CORRECT_FROM and not judgement.failed
    return Grade(reward=value, correct=correct, details=details)
