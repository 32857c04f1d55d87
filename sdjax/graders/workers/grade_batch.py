"""Grades many completions at once: quick comparisons in this process, the others in workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdjax.errors import UserError
from sdjax.graders.workers.pool import Lost, Pool
from sdjax.records import Grade, Message


@dataclass(frozen=True)
class Attempt:
    """The text of one completion, the answer to compare it with, and whether it was cut off.

    `id` is the id of the example, `columns` its row where one is kept, and `messages` its prompt.
    """

    text: str
    answer: str
    truncated: bool = False
    id: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()


# Grades a batch, in order. It must return a grade for any text.
Grader = Callable[[Sequence[Attempt]], list[Grade]]


def each(grade: Callable[..., Grade]) -> Grader:
    """Returns a Grader that calls a quick function `grade(text, answer, truncated=...)` per text.

    The Grader raises UserError if the function does not return a Grade.
    """

    def grader(attempts: Sequence[Attempt]) -> list[Grade]:
        grades = [grade(a.text, a.answer, truncated=a.truncated) for a in attempts]
        wrong = {type(g).__name__ for g in grades if not isinstance(g, Grade)}
        if wrong:
            function = grade.func if isinstance(grade, functools.partial) else grade
            raise UserError(
                f"the grader {getattr(function, '__name__', function)} returned "
                f"{min(wrong)}: it must return a sdjax.records.Grade"
            )
        return grades

    return grader


def verdicts(
    pairs: Sequence[tuple[Any, ...]], quick: Callable[..., bool | None], pool: Pool
) -> list[bool | Lost]:
    """Returns whether each (prediction, gold, any options) agrees.

    A pair for which `quick` returns None goes to the pool. Equal pairs are compared once.
    """
    known: dict[tuple[Any, ...], bool | Lost] = {}
    open_pairs = []
    for pair in dict.fromkeys(pairs):
        verdict = quick(*pair)
        if verdict is None:
            open_pairs.append(pair)
        else:
            known[pair] = verdict
    known |= zip(open_pairs, pool.map(open_pairs), strict=True)
    return [known[pair] for pair in pairs]
