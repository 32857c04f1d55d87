r"""Grades a mathematical answer.

The default rule (`ours`) takes the last \boxed{...} with balanced braces, wherever it stands. It
compares numbers, texts, lists and intervals itself (`equality`) and single expressions with
math-verify. If the length limit cut the completion off, a closed box still counts and the grade
records the cut. A box that never closes is not an answer.

`reference` does what verl/utils/reward_score/feedback/math.py of both papers' code does: it
searches only the last 100 characters and gives bare strings to math-verify.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdjax.graders.answer.regions import last_boxed
from sdjax.graders.answer.tolerance import checked
from sdjax.graders.math import equality
from sdjax.graders.math.latex import MAX_LENGTH
from sdjax.graders.workers.grade_batch import Attempt, Grader, verdicts
from sdjax.graders.workers.pool import Lost, Pool, shared
from sdjax.records import Grade

REFERENCE_WINDOW = 100


def ours(pool: Pool | None = None, *, tolerance: float | None = None) -> Grader:
    """Returns the default grader, whose `details` hold prediction and truncated.

    If a comparison gave no verdict, `details["lost"]` says why. `tolerance` is the relative
    tolerance of every number; None stands for that of `tolerance.of_answer`. Raises UserError for a
    tolerance that is none.
    """
    tolerance = checked(tolerance)
    pool = pool or shared("sdjax.graders.math.symbolic:same", warm_up=("x", "1"))

    def grader(attempts: Sequence[Attempt]) -> list[Grade]:
        predictions = [last_boxed(a.text) for a in attempts]
        pairs = [
            ("" if p is None else p[:MAX_LENGTH], a.answer, tolerance)
            for p, a in zip(predictions, attempts, strict=True)
        ]
        agreed = verdicts(pairs, quick, pool)
        return [_grade(*found) for found in zip(attempts, predictions, agreed, strict=True)]

    return grader


def quick(prediction: str, gold: str, tolerance: float | None = None) -> bool | None:
    """Returns whether two answers agree, or None if only sympy can tell."""
    try:
        return equality.same(prediction, gold, equality.unsure, tolerance)
    except equality.Unsure:
        return None


def _grade(attempt: Attempt, prediction: str | None, agreed: bool | Lost) -> Grade:
    correct = agreed is True
    feedback = ""
    if prediction is None and attempt.truncated:
        feedback = "Your response was cut off before it gave an answer in \\boxed{}."
    elif prediction is None:
        feedback = "Your response gives no answer in \\boxed{}."
    details = {"prediction": prediction, "truncated": attempt.truncated}
    if isinstance(agreed, Lost):
        details["lost"] = agreed.reason
    return Grade(reward=float(correct), correct=correct, feedback=feedback, details=details)


def reference(pool: Pool | None = None) -> Grader:
    """Returns the grader of the papers' reward, whose `details` hold its other results."""
    pool = pool or shared("sdjax.graders.math.symbolic:reference", limit_s=10.0, warm_up=("x", "1"))

    def grader(attempts: Sequence[Attempt]) -> list[Grade]:
        predictions = [_reference_box(a.text[-REFERENCE_WINDOW:]) for a in attempts]
        pairs = [(p or "", a.answer) for p, a in zip(predictions, attempts, strict=True)]
        agreed = verdicts(pairs, _reference_quick, pool)
        return [_reference_grade(*f) for f in zip(attempts, predictions, agreed, strict=True)]

    return grader


def _reference_box(window: str) -> str | None:
    r"""Returns the content of the last literal \boxed{: "" if it never closes, None without one."""
    start = window.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + len("\\boxed"), len(window)):
        depth += {"{": 1, "}": -1}.get(window[i], 0)
        if depth == 0:
            return window[start + len("\\boxed{") : i]
    return ""


def _reference_quick(prediction: str, gold: str) -> bool | None:
    if prediction == gold:
        return True
    return None if prediction else False


def _reference_grade(attempt: Attempt, prediction: str | None, agreed: bool | Lost) -> Grade:
    correct = agreed is True
    feedback = ""
    if attempt.truncated:
        feedback = "Your response was truncated because it exceeded the maximum length."
    elif not prediction:
        feedback = (
            "Your answer had the wrong format. The solution must be given in the format: "
            "\\boxed{your_answer}."
        )
    return Grade(
        reward=float(correct),
        correct=correct,
        feedback=feedback,
        details={
            "pred": prediction or "",
            "incorrect_format": int(not prediction),
            "truncated": int(attempt.truncated),
            "truncated_and_missing_answer": int(attempt.truncated and not prediction),
        },
    )
