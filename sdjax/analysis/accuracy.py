"""Computes how many answers are correct: avg@k, pass@k and maj@k, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The scores of `examples` examples with `k` completions each.

    `estimates` has "avg@k", "pass@j" for each requested j, and "maj@k" if answers were given.
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


def bootstrap(
    scores: np.ndarray, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> list[Estimate]:
    """Returns the estimate for each row of float[M, N] scores of N examples.

    The interval holds percentiles of the means over examples drawn with replacement. All rows share
    the draws.
    """
    examples = scores.shape[1]
    draws = np.random.default_rng(seed).multinomial(
        examples, np.full(examples, 1 / examples), size=resamples
    )
    means = draws @ scores.T / examples  # [resamples, M]
    edges = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Estimate(float(value), float(low), float(high))
        for value, low, high in zip(scores.mean(1), *edges, strict=True)
    ]


def measure(
    correct: Sequence[Sequence[bool]],
    answers: Sequence[Sequence[str | None]] | None = None,
    *,
    ks: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Accuracy:
    """Returns the accuracy of completions graded `correct[example][completion]`.

    Raises ValueError unless all examples have the same number of completions, at least one.

    Args:
      correct: whether each completion of each example is correct.
      answers: the answer of each completion, which maj@k needs; None leaves maj@k out.
      ks: the k of pass@k; by default the powers of two up to the number of completions, and that
        number.
      seed: seed of the bootstrap.
      resamples: number of bootstrap draws.
      level: confidence level of the intervals.
    """
    sizes = {len(row) for row in correct}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"examples have {sorted(sizes)} completions: needs one number >= 1")
    k = sizes.pop()
    if ks is None:
        ks = sorted({*(2**i for i in range(k.bit_length())), k})
    right = [sum(bool(ok) for ok in row) for row in correct]
    scores = {f"avg@{k}": [number / k for number in right]}
    for j in ks:
        scores[f"pass@{j}"] = [pass_at(k, number, j) for number in right]
    if answers is not None:
        scores[f"maj@{k}"] = [
            majority(row, given) for row, given in zip(correct, answers, strict=True)
        ]
    estimates = bootstrap(
        np.array(list(scores.values())), seed=seed, resamples=resamples, level=level
    )
    return Accuracy(
        examples=len(correct),
        k=k,
        level=level,
        estimates=dict(zip(scores, estimates, strict=True)),
    )
