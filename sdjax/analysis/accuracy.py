"""Computes how many answers are correct: avg@k, pass@k and maj@k, with confidence intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The scores of `examples` examples with `k` completions each.

    `estimates` has "avg@k", "pass@j" for each requested j, and "maj@k" if answers were given. There
    is no "pass@1" by default, because it equals "avg@k".
    """

    examples: int
    k: int
    level: float
    estimates: dict[str, Estimate]

    def to_dict(self) -> dict:
        """Returns plain values for JSON."""
        return {
            "examples": self.examples,
            "k": self.k,
            "level": self.level,
            **{
                name: {"value": e.value, "low": e.low, "high": e.high}
                for name, e in self.estimates.items()
            },
        }

    def to_markdown(self) -> str:
        """Returns a Markdown table of percentages, one row per estimate."""
        rows = [
            f"| {name} | {100 * e.value:.1f} | {100 * e.low:.1f} to {100 * e.high:.1f} |"
            for name, e in self.estimates.items()
        ]
        head = f"| {self.examples} examples | % | {100 * self.level:g}% interval |"
        return "\n".join([head, "|---|---|---|", *rows])


def pass_at(n: int, correct: int, k: int) -> float:
    """Returns the chance that k of n completions, drawn without replacement, include a correct one.

    The value is 1 - C(n - correct, k) / C(n, k), computed exactly in integers. It is unbiased for
    any k <= n (arXiv:2107.03374 eq. 1). Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {n} completions, {correct} correct: needs 1 <= k <= n")
    return float(1 - Fraction(comb(n - correct, k), comb(n, k)))


def vote(details: Mapping[str, Any]) -> str | None:
    """Returns the text that a grade votes with in maj@k, None without an answer.

    It is `vote` of the grade's details, or else `prediction`. Values other than texts vote as JSON:
    keys in one order, 3.0 as 3, and true apart from 1.
    """
    value = details.get("vote", details.get("prediction"))
    if value is None or isinstance(value, str):
        return value
    return json.dumps(_plain(value), sort_keys=True, default=str)


def has_vote(details: Mapping[str, Any]) -> bool:
    """Returns whether the details of a grade have a place for an answer to vote with."""
    return "vote" in details or "prediction" in details


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it, with whole numbers for floats that equal one."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def majority(correct: Sequence[bool], answers: Sequence[str | None]) -> float:
    """Returns whether the most common answer to one example is correct, as a number in [0, 1].

    An answer of None has no vote; without any vote the result is 0. If several answers have the
    most votes, the result is the expectation of a fair draw among them. If completions with the
    same answer were graded differently, the share graded correct counts.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    lead = max(votes.values())
    leaders = [answer for answer, number in votes.items() if number == lead]
    right = sum(bool(ok) for ok, answer in zip(correct, answers, strict=True) if answer in leaders)
    return right / (lead * len(leaders))


def intervals(scores: np.ndarray, *, completions: int = 1, level: float = 0.95) -> list[Estimate]:
    """Returns the estimate for each row of float[M, N] scores in [0, 1] of N examples.

    The interval is that of Clopper and Pearson (Biometrika 26, 1934) for a number of independent
    answers. This is N / `_design_effect`, as in Korn and Graubard (Survey Methodology 24, 1998).
    The interval has a width at 0 and 1 too. docs/metrics.md has its coverage.
    `completions` is the number of answers behind each score.
    """
    from scipy.special import betaincinv

    value = scores.mean(1)
    number = scores.shape[1] / _design_effect(scores, completions)
    right, tail = number * value, (1 - level) / 2
    # The limits of no right answer and of no wrong answer are 0 and 1 exactly.
    low = np.where(right > 0, betaincinv(np.maximum(right, 1e-9), number - right + 1, tail), 0)
    wrong = np.maximum(number - right, 1e-9)
    high = np.where(value < 1, betaincinv(right + 1, wrong, 1 - tail), 1)
    return [Estimate(*map(float, found)) for found in zip(value, low, high, strict=True)]


def _design_effect(scores: np.ndarray, completions: int) -> np.ndarray:
    """Returns float[M]: the variance of the scores over that of single answers, p (1 - p).

    It is 1 if all completions of an example agree, and 1 / completions if they are independent. Few
    scores other than 0 and 1 tell little of it. So one further score that says 1 is counted in,
    beside the weight 4 p (1 - p) of each other score.
    """
    value = scores.mean(1)
    spread = value * (1 - value)
    weight = 4 * (scores.shape[1] - 1)
    effect = (weight * scores.var(1) + 1) / (weight * spread + 1)
    return np.maximum(effect, 1 / completions)


def measure(
    correct: Sequence[Sequence[bool]],
    answers: Sequence[Sequence[str | None]] | None = None,
    *,
    ks: Sequence[int] | None = None,
    level: float = 0.95,
) -> Accuracy:
    """Returns the accuracy of completions graded `correct[example][completion]`.

    Raises ValueError unless all examples have the same number of completions, at least one.

    Args:
      correct: whether each completion of each example is correct.
      answers: the answer of each completion, which maj@k needs; None leaves maj@k out.
      ks: the k of pass@k; by default the powers of two from 2 up to the number of completions, and
        that number if it is not 1.
      level: confidence level of the intervals.
    """
    sizes = {len(row) for row in correct}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"examples have {sorted(sizes)} completions: needs one number >= 1")
    k = sizes.pop()
    if ks is None:
        ks = sorted({*(2**i for i in range(1, k.bit_length())), k} - {1})
    right = [sum(bool(ok) for ok in row) for row in correct]
    scores = {f"avg@{k}": [number / k for number in right]}
    for j in ks:
        scores[f"pass@{j}"] = [pass_at(k, number, j) for number in right]
    if answers is not None:
        scores[f"maj@{k}"] = [
            majority(row, given) for row, given in zip(correct, answers, strict=True)
        ]
    estimates = intervals(np.array(list(scores.values())), completions=k, level=level)
    return Accuracy(
        examples=len(correct),
        k=k,
        level=level,
        estimates=dict(zip(scores, estimates, strict=True)),
    )
