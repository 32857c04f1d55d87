"""Grades answers to the questions of a reasoning-gym generator.

An answer that is a number is graded by the number rule. Any other answer goes to the generator's
own rule, in a worker process (`reasoning_gym_worker`). Only the full score counts: several
generators give partial credit to any text that holds the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.graders.answer import number
from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.graders.workers import pool
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.records import Grade

MAX_ANSWER = 10_000
# Generating questions takes longer than scoring an answer.
QUESTIONS_S = 60.0


def workers() -> pool.Pool:
    """Returns the workers that generate and score; importing reasoning-gym takes them seconds."""
    return pool.shared("sdjax.graders.reasoning_gym_worker:call")


def questions(
    name: str, options: Mapping[str, Any], start: int, count: int
) -> list[tuple[str, str]] | str | pool.Lost:
    """Returns the (question, answer) of items `start` to `start + count` of a generator.

    Returns a text that says what is wrong with the name or options, and Lost if the generator
    takes longer than QUESTIONS_S or fails.
    """
    call = ("questions", name, json.dumps(options), start, count)
    (items,) = workers().map([call], limit_s=QUESTIONS_S)
    return items


def grader(*, name: str, options: Mapping[str, Any]) -> Grader:
    """Returns a grader; an attempt's `id` is the index of its question in the generator.

    `options` is the generator's configuration, with its seed and size.
    """
    configuration = json.dumps(options)

    def grade_all(attempts: Sequence[Attempt]) -> list[Grade]:
        stated = [_stated(attempt) for attempt in attempts]
        calls = [
            ("full_score", name, configuration, int(attempt.id), answer)
            for attempt, answer in zip(attempts, stated, strict=True)
            if answer is not None
        ]
        scores = iter(workers().map(calls))
        return [
            number.grade(attempt.text, attempt.answer, truncated=attempt.truncated)
            if number.is_plain(attempt.answer)
            else _grade(attempt, answer, answer is not None and next(scores) is True)
            for attempt, answer in zip(attempts, stated, strict=True)
        ]

    return grade_all


def _stated(attempt: Attempt) -> str | None:
    """Returns the answer that goes to the generator's own rule, None if there is none.

    It is the content of the last <answer> or box, else the whole text after the thinking.
    """
    if number.is_plain(attempt.answer):
        return None
    stated = stated_answer(attempt.text)
    if stated is None and not attempt.truncated:
        stated = after_thinking(attempt.text).strip()
    return None if stated is None or len(stated) > MAX_ANSWER else stated


def _grade(attempt: Attempt, answer: str | None, correct: bool) -> Grade:
    return Grade(
        reward=float(correct),
        correct=correct,
        details={"prediction": answer, "truncated": attempt.truncated},
    )
