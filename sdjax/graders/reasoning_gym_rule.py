"""Grades answers to the questions of a reasoning-gym generator.

An answer that is a number is graded by the number rule. Any other answer goes to the generator's
own rule, in a worker process (`reasoning_gym_worker`). Only the full score counts: several
generators give partial credit to any text that holds the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.errors import require_package
from sdjax.graders.answer import number
from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.graders.workers import pool
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.records import Grade

MAX_ANSWER = 10_000
# Generating questions takes longer than scoring an answer.
QUESTIONS_S = 60.0
VAGUE = "I am not sure"


def workers() -> pool.Pool:
    """Returns the workers that generate and score; importing reasoning-gym takes them seconds.

    Raises UserError if reasoning-gym is not installed.
    """
    require_package("reasoning_gym", "puzzles", "a task of reasoning-gym")
    return pool.shared("sdjax.graders.reasoning_gym_worker:call")


def version() -> str:
    """Returns the version of reasoning-gym that generates and scores."""
    (found,) = workers().map([("version",)], limit_s=QUESTIONS_S)
    return str(found)


def questions(
    name: str, options: Mapping[str, Any], start: int, count: int
) -> list[tuple[str, str]] | str | pool.Lost:
    """Returns the (question, answer) of up to `count` items of a generator, from item `start` on.

    There are fewer if they take long, and none if the generator has run out. An answer of "" means
    that the generator states none. Returns a text that says what is wrong with the name or options,
    and Lost if the generator takes longer than QUESTIONS_S or fails.
    """
    call = ("questions", name, json.dumps(options), start, count)
    (items,) = workers().map([call], limit_s=QUESTIONS_S)
    return items


def fault(
    name: str, options: Mapping[str, Any], rows: Sequence[tuple[int, str, str]]
) -> str | None:
    """Returns the fault of a generator's rule in words, None if it can judge a model.

    `rows` are (index, question, answer) of some of its questions. The rule must take the answer of
    each, must refuse VAGUE, and must not take the answers of all other questions. A question
    without an answer only gets VAGUE. A score that a worker loses decides nothing.
    """
    grade = grader(name=name, options=options)

    def taken(pairs: Sequence[tuple[int, str, str]]) -> tuple[int, int]:
        """Returns how many of (index, gold, said) are graded right, and how many wrong."""
        attempts = [Attempt(f"<answer>{said}</answer>", gold, id=str(i)) for i, gold, said in pairs]
        grades = [g for g in grade(attempts) if "lost" not in g.details]
        right = sum(g.correct for g in grades)
        return right, len(grades) - right

    stated = [(index, answer) for index, _, answer in rows if answer]
    refused = taken([(index, gold, gold) for index, gold in stated])[1]
    vague = taken([(index, gold, VAGUE) for index, _, gold in rows])[0]
    others = [
        (index, gold, other)
        for (index, gold), (_, other) in zip(stated, stated[1:] + stated[:1], strict=True)
        if gold != other
    ]
    right, wrong = taken(others)
    if refused:
        return f"refuses its own answer to {refused} of {len(stated)} questions"
    if vague:
        return f"takes {VAGUE!r} for right in {vague} of {len(rows)} questions"
    if right > 1 and not wrong:
        return f"takes the answer to another question for right in {right} of {right} cases"
    return None


def grader(*, name: str, options: Mapping[str, Any]) -> Grader:
    """Returns a grader; an attempt's `id` is the index of its question in the generator.

    `options` is the generator's configuration, with its seed and size. If the rule gave no verdict,
    `details["lost"]` says why.
    """
    configuration = json.dumps(options)

    def grade_all(attempts: Sequence[Attempt]) -> list[Grade]:
        stated = [_stated(attempt) for attempt in attempts]
        calls = [
            ("full_score", name, configuration, int(attempt.id), answer, pool.LIMIT_S)
            for attempt, answer in zip(attempts, stated, strict=True)
            if answer is not None
        ]
        # The worker may have to generate the question before it can score.
        scores = iter(workers().map(calls, limit_s=QUESTIONS_S))
        return [
            number.grade(attempt.text, attempt.answer, truncated=attempt.truncated)
            if number.is_plain(attempt.answer)
            else _grade(attempt, answer, False if answer is None else next(scores))
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


def _grade(attempt: Attempt, answer: str | None, score: bool | pool.Lost) -> Grade:
    correct = score is True
    details = {"prediction": answer, "truncated": attempt.truncated}
    if isinstance(score, pool.Lost):
        details["lost"] = score.reason
    if correct and attempt.answer and answer != attempt.answer:
        details["vote"] = attempt.answer  # the rule takes several spellings
    return Grade(reward=float(correct), correct=correct, details=details)
