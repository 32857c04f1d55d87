"""Computes what a preflight says of each context of a teacher, and which one it recommends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sdjax.analysis import markdown
from sdjax.analysis.accuracy import Estimate, intervals

SLOPES = (0.66, 1.5)
"""Gain in accuracy after training per point of gap: the least and the largest slope that
arXiv:2605.30070 found (Olmo-3-7B; Qwen3-8B and other sizes of it)."""
LEVEL = 0.95
LEAST_QUESTIONS = 2
"""Questions that a context must be able to teach, because an interval needs several."""


@dataclass(frozen=True, kw_only=True)
class AskedAnswers:
    """Graded answers to N questions, K each; every array has the shape [N, K]."""

    correct: np.ndarray  # bool
    tokens: np.ndarray  # int
    doubt: np.ndarray  # int, the epistemic words of an answer
    cut: np.ndarray  # bool, whether an answer reached the limit of tokens


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Sums over the tokens of each completion, float64[N, K], of KL(student || teacher) in nats."""

    kl: np.ndarray
    kl_of_doubt: np.ndarray  # of tokens in epistemic words alone
    tokens: np.ndarray
    tokens_of_doubt: np.ndarray


@dataclass(frozen=True, kw_only=True)
class AnswerFigures:
    """Answers in numbers. Doubt is in epistemic words per 1,000 tokens."""

    right: Estimate
    doubt: Estimate
    tokens: float
    cut: float


@dataclass(frozen=True, kw_only=True)
class ContextFigures:
    """What a context teaches. Under LEAST_QUESTIONS questions, all but the shares is None.

    `teacher` and `student` describe answers with and without the context, where it can teach.
    `gap` is over all questions: the share of right answers in the context minus that without it.
    Where the context cannot teach, it counts 0. `gain` is its least and largest prediction.
    """

    groups: Estimate
    completions: float
    teacher: AnswerFigures | None = None
    student: AnswerFigures | None = None
    gap: Estimate | None = None
    gain: tuple[float, float] | None = None
    kl: Estimate | None = None
    kl_on_doubt: Estimate | None = None
    tokens_on_doubt: float | None = None


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Shares of the groups of completions by their rewards."""

    mixed: Estimate
    right: Estimate
    wrong: Estimate


def of_groups(rewards: np.ndarray, correct: np.ndarray) -> Groups:
    """Returns the shares of groups whose rewards differ, and that are all right or all wrong.

    `rewards` is float[N, K] and `correct` is bool[N, K].
    """
    return Groups(
        mixed=share(rewards.min(1) < rewards.max(1)),
        right=share(correct.all(1)),
        wrong=share(~correct.any(1)),
    )


def share(of: ArrayLike) -> Estimate:
    """Returns the share of True in bool[N], with its interval."""
    return intervals(np.asarray(of, float)[None], level=LEVEL)[0]


def of_answers(answers: AskedAnswers, counted: np.ndarray | None = None) -> AnswerFigures:
    """Returns the figures of the answers that `counted` bool[N, K] marks; None: all, at least one.

    Questions without any such answer do not count.
    """
    counted = np.ones_like(answers.correct) if counted is None else counted
    some = counted.any(1)
    counted = counted[some]
    number = counted.sum(1)
    right = (answers.correct[some] & counted).sum(1) / number
    most = int(number.max())
    lengths = answers.tokens[some]
    return AnswerFigures(
        right=intervals(right[None], completions=most, level=LEVEL)[0],
        doubt=ratio((answers.doubt[some] * counted).sum(1) * 1000, (lengths * counted).sum(1)),
        tokens=float(lengths[counted].mean()),
        cut=float(answers.cut[some][counted].mean()),
    )


def of_context(
    taught: np.ndarray,
    student: AskedAnswers,
    teacher: AskedAnswers | None = None,
    gaps: Gaps | None = None,
) -> ContextFigures:
    """Returns the figures of a context.

    Args:
        taught: bool[N, K], the completions that the context can teach.
        student: Answers without a context, drawn apart from the completions that contexts show.
            Otherwise these would be chosen for being right, and the gap would be biased.
        teacher: Answers to what the teacher reads for each completion; None: not asked.
        gaps: How far student and teacher are apart on the completions; None: not compared.
    """
    groups = share(taught.any(1))
    if teacher is None or gaps is None or taught.any(1).sum() < LEAST_QUESTIONS:
        return ContextFigures(groups=groups, completions=float(taught.mean()))
    gap = difference(student.correct & taught, teacher.correct & taught)
    before = float(student.correct.mean())
    by_slope = sorted(min(max(slope * gap.value, -before), 1 - before) for slope in SLOPES)
    kl, of_doubt, tokens = (x.sum(1) for x in (gaps.kl, gaps.kl_of_doubt, gaps.tokens))
    # Rounding leaves a divergence of 1e-7 where both read the same; its parts say nothing.
    apart = kl.sum() > 1e-5 * tokens.sum()
    return ContextFigures(
        groups=groups,
        completions=float(taught.mean()),
        teacher=of_answers(teacher, taught),
        student=of_answers(student, taught),
        gap=gap,
        gain=(by_slope[0], by_slope[1]),
        kl=ratio(kl, tokens),
        kl_on_doubt=ratio(of_doubt, kl) if apart else None,
        tokens_on_doubt=float(gaps.tokens_of_doubt.sum() / tokens.sum()),
    )


def difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Returns the share of True in the second bool[N, K] minus that in the first.

    Rows are the same N questions. The interval is `accuracy.intervals` of (1 + difference) / 2,
    which lies in [0, 1], so it takes the questions in pairs.
    """
    by_question = second.mean(1) - first.mean(1)
    # A difference of two means over K answers has half of the variance that its size allows.
    completions = 4 * first.shape[1]
    (half,) = intervals((1 + by_question)[None] / 2, completions=completions, level=LEVEL)
    return Estimate(*(2 * x - 1 for x in (half.value, half.low, half.high)))


def ratio(part: np.ndarray, whole: np.ndarray) -> Estimate:
    """Returns sum(part) / sum(whole) over float[N], with the interval of a linearised ratio.

    The variance is that between questions, of which there are at least two, and the quantile is
    Student's t. The lower end is at least 0.
    """
    from scipy.special import stdtrit

    value, number = float(part.sum() / whole.sum()), len(part)
    spread = float(((part - value * whole) ** 2).sum()) * number / (number - 1)
    half = float(stdtrit(number - 1, (1 + LEVEL) / 2)) * math.sqrt(spread) / float(whole.sum())
    return Estimate(value, max(value - half, 0.0), value + half)


def recommendation(
    contexts: Mapping[str, ContextFigures],
    groups: Groups,
    *,
    least_groups: float,
    least_doubt: float,
) -> str:
    """Returns one sentence: which context to take, or why none.

    The rules, of which the first that fits speaks:

    1. No context can teach `least_groups` of the groups: none teaches.
    2. None of those that can has a gap whose interval lies above 0: none is worth distilling.
    3. Of these, the one with the largest gap keeps doubt: take it.
    4. Another one of these keeps doubt: try it.
    5. None keeps doubt: compare with rewards alone.

    A context keeps doubt if the teacher's epistemic words per 1,000 tokens are at least
    `least_doubt` of the student's on the same questions.
    """
    reach = {n: c for n, c in contexts.items() if c.gap and c.groups.value >= least_groups}
    if not reach:
        best = max(contexts, key=lambda name: contexts[name].groups.value)
        known = f"`{best}`, can teach {contexts[best].groups.value:.0%} of the groups"
        limit = f"under {least_groups:.0%}"
        return f"No context teaches: the best one, {known}, {limit}; {_ask(groups)}."

    def gap(name: str) -> float:
        return contexts[name].gap.value  # type: ignore[union-attr]

    better = [n for n, c in reach.items() if c.gap is not None and c.gap.low > 0]
    if not better:
        best = max(reach, key=gap)
        rest = _ask(groups)
        if groups.mixed.value >= least_groups:
            rest = (
                "train with rewards alone (--loss.distillation 0), which differ in "
                f"{groups.mixed.value:.0%} of the groups"
            )
        found = contexts[best].gap
        return f"No context is worth distilling: with `{best}`, the gap is {signed(found)}; {rest}."
    best = max(better, key=gap)
    kept = [name for name in better if _keeps(contexts[name], least_doubt)]
    if best in kept:
        said = f"predicts {_gain(contexts[best])} and keeps doubt ({_doubt(contexts[best])})"
        return f"Take `{best}`: it {said}."
    said = f"`{best}` predicts {_gain(contexts[best])} but takes doubt {_doubt(contexts[best])}"
    if kept:
        other = max(kept, key=gap)
        kept_by = contexts[other]
        rest = f"predicts {_gain(kept_by)} and keeps it ({_doubt(kept_by)})"
        return f"{said}: try `{other}`, which {rest}."
    return (
        f"{said}, and no context that teaches keeps it: compare with rewards alone "
        "(--loss.distillation 0)."
    )


def _ask(groups: Groups) -> str:
    """Returns the advice for questions that teach nothing."""
    if groups.right.value > groups.wrong.value:
        return f"{groups.right.value:.0%} of the groups are all right, so take harder questions"
    return (
        f"{groups.wrong.value:.0%} of the groups are all wrong, so take easier questions or raise "
        "rollout.group_size"
    )


def _keeps(context: ContextFigures, least: float) -> bool:
    if context.teacher is None or context.student is None:
        return False
    return context.teacher.doubt.value >= least * context.student.doubt.value


def _gain(context: ContextFigures) -> str:
    low, high = context.gain or (0.0, 0.0)
    return f"{low:+.2f} to {high:+.2f}"


def _doubt(context: ContextFigures) -> str:
    ends = [x.doubt.value for x in (context.student, context.teacher) if x is not None]
    return f"from {ends[0]:.0f} to {ends[1]:.0f} words per 1,000 tokens"


def signed(estimate: Estimate | None) -> str:
    """Returns a difference with its interval; "" for None."""
    if estimate is None:
        return ""
    return f"{estimate.value:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f})"


def within(estimate: Estimate | None, digits: int = 2) -> str:
    """Returns a value with its interval; "" for None."""
    if estimate is None:
        return ""
    value, low, high = (f"{x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def page(
    title: str,
    asked: str,
    alone: AnswerFigures,
    groups: Groups,
    contexts: Mapping[str, ContextFigures],
    costs: Mapping[str, Mapping[str, str]],
    advice: str,
) -> str:
    """Returns the page of a preflight in Markdown, without a line end.

    Args:
        title: Names the training.
        asked: Says what was asked, as a sentence without its full stop.
        alone: The student's answers without a context.
        groups: Its completions by their rewards.
        contexts: The figures of each context.
        costs: Further cells of each context, by the heads of their columns.
        advice: The recommendation.
    """
    each = [groups.mixed, groups.right, groups.wrong]
    mixed, right, wrong = (f"{x.value:.0%}" for x in each)
    spread = f"({each[0].low:.0%} to {each[0].high:.0%})"
    heads = list(dict.fromkeys(head for of in costs.values() for head in of))
    parts = [
        f"# Preflight of {title}",
        f"{asked}. Without a context {within(alone.right)} are right, with {alone.doubt.value:.0f} "
        f"words of doubt per 1,000 tokens and {alone.tokens:.0f} tokens an answer. Rewards differ "
        f"in {mixed} of the groups {spread}; {right} are all right, {wrong} all wrong.",
        markdown.table(
            ["context", *GAIN],
            [[f"`{name}`", *_gain_cells(of)] for name, of in contexts.items()],
        ),
        markdown.table(
            ["context", *READING, *heads],
            [
                [f"`{name}`", *_reading_cells(of), *(costs[name].get(head, "") for head in heads)]
                for name, of in contexts.items()
            ],
        ),
        f"**Recommendation.** {advice}",
        NOTE,
    ]
    return "\n\n".join(parts)


GAIN = (
    *("groups it can teach", "right with, without it", "gap (95 % interval)"),
    *("predicted gain", "doubt with, without it"),
)
READING = ("KL per token", "of it on doubt", "tokens", "cut off")
NOTE = (
    "The gap is over all questions; where a context cannot teach, it counts 0. The predicted gain "
    f"in domain is the gap x {SLOPES[0]} to {SLOPES[1]} (arXiv:2605.30070). Doubt is in epistemic "
    "words per 1,000 tokens."
)


def _gain_cells(of: ContextFigures) -> list[str]:
    groups = f"{of.groups.value:.0%}"
    if of.teacher is None or of.student is None:
        return [groups, *[""] * (len(GAIN) - 1)]
    return [
        groups,
        f"{of.teacher.right.value:.2f}, {of.student.right.value:.2f}",
        signed(of.gap),
        _gain(of),
        f"{of.teacher.doubt.value:.0f}, {of.student.doubt.value:.0f}",
    ]


def _reading_cells(of: ContextFigures) -> list[str]:
    if of.teacher is None:
        return [""] * len(READING)
    on_doubt = ""
    if of.kl_on_doubt is not None:
        on_doubt = f"{of.kl_on_doubt.value:.0%} (of {of.tokens_on_doubt:.0%} of the tokens)"
    return [
        within(of.kl, 3),
        on_doubt,
        f"{of.teacher.tokens:.0f}",
        f"{of.teacher.cut:.0%}",
    ]
