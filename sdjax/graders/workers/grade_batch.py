"""Grades many completions at once: what is quick in this process, the rest in workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdjax.graders.workers.pool import Lost, Pool
from sdjax.records import Grade


@dataclass(frozen=True)
class Attempt:
    """One completion's text, what its grader compares with, and whether it was cut off.

    `id` is the example's.
    """

    text: str
    answer: str
    truncated: bool = False
    id: str = ""


# Grades a batch, in order. Total: it returns a grade for any texts.
Grader = Callable[[Sequence[Attempt]], list[Grade]]


def each(grade: Callable[..., Grade]) -> Grader:
    """Returns a Grader of a function that grades one text and is quick."""

    def grader(attempts: Sequence[Attempt]) -> list[Grade]:
        return [grade(a.text, a.answer, truncated=a.truncated) for a in attempts]

    return grader


def verdicts(
    pairs: Sequence[tuple[str, str]], quick: Callable[[str, str], bool | None], pool: Pool
) -> list[bool | Lost]:
    """Returns whether each (prediction, gold) agrees; a pair that `quick` leaves open goes to the
    pool, equal pairs once."""
    known: dict[tuple[str, str], bool | Lost] = {}
    open_pairs = []
    for pair in dict.fromkeys(pairs):
        verdict = quick(*pair)
        if verdict is None:
            open_pairs.append(pair)
        else:
            known[pair] = verdict
    known |= zip(open_pairs, pool.map(open_pairs), strict=True)
    return [known[pair] for pair in pairs]
