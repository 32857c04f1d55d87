"""Finds out which answers to one question are equal, so that they vote together in maj@k.

A grade votes with `details["vote"]` if it is there, else with `details["prediction"]`. Grades of a
rule without answers, such as "code", have neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.records import Grade, Group


@dataclass(frozen=True)
class ComparingGrader:
    """A grader whose rule can also compare two predictions, as both have the form of an answer.

    A right prediction votes with the spelling of the answer. `key` names the prediction in the
    details of `grade_all`.
    """

    grade_all: Grader
    key: str = "prediction"

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        """Returns the grades of `grade_all` with prediction and vote."""
        grades = self.grade_all(attempts)
        return [self._with_vote(*pair) for pair in zip(attempts, grades, strict=True)]

    def _with_vote(self, attempt: Attempt, grade: Grade) -> Grade:
        prediction = grade.details[self.key] or None
        added: dict[str, Any] = {} if self.key == "prediction" else {"prediction": prediction}
        if grade.correct and prediction != attempt.answer:
            added["vote"] = attempt.answer
        return replace(grade, details=grade.details | added)


def merged(grader: Grader, groups: Sequence[Group]) -> list[list[str | None]]:
    """Returns for each completion of each group the spelling that it must vote with.

    It is None where the grade's own details say it. Wrong predictions that a ComparingGrader finds
    equal get the spelling of the first of them.
    """
    votes: list[list[str | None]] = [[None] * len(group.grades) for group in groups]
    grader = getattr(grader, "grader", grader)  # below the rewards of a config
    if not isinstance(grader, ComparingGrader):
        return votes
    # For each group, each spelling of a wrong prediction, and the completions that have it.
    waiting = [_wrong(group) for group in groups]
    while any(len(spellings) > 1 for spellings in waiting):
        leaders = [next(iter(spellings), "") for spellings in waiting]
        others = [(g, text) for g, found in enumerate(waiting) for text in [*found][1:]]
        grades = grader(
            [_attempt(groups[g], waiting[g][text][0], answer=leaders[g]) for g, text in others]
        )
        for (g, text), grade in zip(others, grades, strict=True):
            if grade.correct:
                for i in waiting[g].pop(text):
                    votes[g][i] = leaders[g]
        for spellings, leader in zip(waiting, leaders, strict=True):
            spellings.pop(leader, None)
    return votes


def _wrong(group: Group) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, grade in enumerate(group.grades):
        prediction = grade.details["prediction"]
        if prediction is not None and not grade.correct:
            found.setdefault(prediction, []).append(i)
    return found


def _attempt(group: Group, i: int, *, answer: str) -> Attempt:
    completion = group.completions[i]
    return Attempt(completion.text, answer, completion.finish == "length", group.example.id)
