"""Grades a mathematical answer as the papers' evaluation does (`eval_strings`, `eval_symbolic`).

It reads the whole response, accepts unclosed boxes, and takes 5 for 500: it is here so that
figures can be compared with the papers', not because it is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdjax.graders.math import paper_strings
from sdjax.graders.workers.grade_batch import Attempt, Grader, verdicts
from sdjax.graders.workers.pool import Lost, Pool
from sdjax.records import Grade


def reference(pool: Pool | None = None) -> Grader:
    """Returns the papers' evaluation grader; `details` hold extracted and stripped."""
    pool = pool or Pool("sdjax.graders.math.paper_symbolic:same", warm_up=["x", "1"])

    def grader(attempts: Sequence[Attempt]) -> list[Grade]:
        extracted = [paper_strings.extract(a.text) for a in attempts]
        pairs = [
            (paper_strings.strip(e), paper_strings.strip(a.answer))
            for e, a in zip(extracted, attempts, strict=True)
        ]
        agreed = verdicts(pairs, _quick, pool)
        return [_grade(*found) for found in zip(attempts, extracted, pairs, agreed, strict=True)]

    return grader


def _quick(prediction: str, gold: str) -> bool | None:
    if not prediction:
        return False
    return True if prediction.lower() == gold.lower() else None


def _grade(attempt: Attempt, extracted: str, pair: tuple[str, str], agreed: bool | Lost) -> Grade:
    correct = agreed is True
    return Grade(
        reward=float(correct),
        correct=correct,
        details={
            "extracted": extracted,
            "stripped": pair[0],
            "truncated": attempt.truncated,
            "lost": agreed.reason if isinstance(agreed, Lost) else None,
        },
    )
