"""The figures of a preflight: gaps, their intervals, and the rules of its recommendation."""

import re

import numpy as np
import pytest

from sdjax.analysis import context_figures as figures
from sdjax.analysis.accuracy import Estimate


def answers(correct, doubt=6, tokens=100):
    correct = np.asarray(correct, bool)

    def full(value):
        return np.full(correct.shape, value)

    return figures.AskedAnswers(
        correct=correct, tokens=full(tokens), doubt=full(doubt), cut=full(False)
    )


def gaps(shape, kl=2.0, of_doubt=1.0):
    def full(value):
        return np.full(shape, float(value))

    return figures.Gaps(
        kl=full(kl), kl_of_doubt=full(of_doubt), tokens=full(10), tokens_of_doubt=full(1)
    )


def test_the_figures_of_a_context_are_those_counted_by_hand():
    student = answers([[1, 0], [0, 0], [1, 1]])
    teacher = answers([[1, 1], [1, 0], [0, 0]], doubt=3, tokens=60)
    taught = np.array([[True, True], [True, False], [False, False]])
    found = figures.of_context(taught, student, teacher, gaps((3, 2)))
    assert found.groups.value == pytest.approx(2 / 3) and found.completions == 0.5
    # By question 1 - 1/2, 1/2 - 0, and 0 where it cannot teach.
    assert found.gap.value == pytest.approx(1 / 3)
    assert found.gap.low < 1 / 3 < found.gap.high
    # The student has 1/2 of all answers right, so no gain is over 1/2.
    assert found.gain == pytest.approx((0.66 / 3, 0.5))
    assert (found.teacher.right.value, found.student.right.value) == (1.0, 0.25)
    assert (found.teacher.doubt.value, found.student.doubt.value) == (50.0, 60.0)
    assert found.teacher.tokens == 60.0
    assert (found.kl.value, found.kl_on_doubt.value) == pytest.approx((0.2, 0.5))
    assert found.tokens_on_doubt == pytest.approx(0.1)


def test_a_context_that_teaches_one_question_has_shares_alone():
    taught = np.array([[True, True], [False, False]])
    found = figures.of_context(taught, answers(taught), answers(taught), gaps((2, 2)))
    assert found.groups.value == 0.5 and found.teacher is found.gap is found.kl is None


def test_equal_distributions_have_no_share_on_doubt():
    taught = np.ones((3, 2), bool)
    found = figures.of_context(taught, answers(taught), answers(taught), gaps((3, 2), 1e-7, -1e-8))
    assert found.kl.value == pytest.approx(1e-8) and found.kl_on_doubt is None


def drawn(rng, p, answers):
    return rng.random((len(p), answers)) < p[:, None]


def has_other_success(correct):
    """Returns which completions have a right sibling that they can be shown."""
    return correct.sum(1, keepdims=True) - correct > 0


def test_a_teacher_who_knows_nothing_more_has_gap_0_whatever_its_context_shows():
    """The groups that contexts show are chosen for being right; the answers that count are not."""
    from scipy.stats import ttest_1samp  # a second and a half, only here

    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        p = rng.beta(1, 2, 32)
        taught = has_other_success(drawn(rng, p, 4))
        student, teacher = (answers(drawn(rng, p, 4)) for _ in range(2))
        found.append(figures.of_context(taught, student, teacher, gaps((32, 4))).gap.value)
    assert ttest_1samp(found, 0.0).pvalue > 0.01


@pytest.mark.parametrize(("questions", "each"), [(8, 2), (32, 4), (100, 1)])
@pytest.mark.parametrize("more", [0.0, 0.3, 1.0])
def test_the_interval_of_a_gap_holds_the_truth(questions, each, more):
    """`more` is how far the teacher's chance goes from the student's, a draw of Beta, to 1."""
    rng, holds = np.random.default_rng(1), []
    truth = more * (1 - 1 / 3)
    for _ in range(400):
        p = rng.beta(1, 2, questions)
        found = figures.difference(drawn(rng, p, each), drawn(rng, p + more * (1 - p), each))
        holds.append(found.low <= truth <= found.high)
    assert np.mean(holds) > 0.93  # the standard error of .95 is .011


def test_the_interval_of_a_ratio_holds_the_truth():
    rng, holds = np.random.default_rng(2), []
    for _ in range(400):
        tokens = rng.integers(40, 200, 32)
        found = figures.ratio(rng.poisson(0.05 * tokens), tokens)
        holds.append(found.low <= 0.05 <= found.high)
    assert np.mean(holds) > 0.92


def groups(mixed=0.8, right=0.05, wrong=0.15):
    return figures.Groups(
        mixed=Estimate(mixed, mixed, mixed),
        right=Estimate(right, right, right),
        wrong=Estimate(wrong, wrong, wrong),
    )


def context(gap, doubt, groups=0.9, low=None):
    def of(rate):
        one = Estimate(rate, rate, rate)
        return figures.AnswerFigures(right=one, doubt=one, tokens=100.0, cut=0.0)

    return figures.ContextFigures(
        groups=Estimate(groups, groups, groups),
        completions=groups,
        teacher=of(doubt),
        student=of(60.0),
        gap=Estimate(gap, gap - 0.05 if low is None else low, gap + 0.05),
        gain=(0.66 * gap, 1.5 * gap),
    )


RARE = {"solution": context(0.4, 50, groups=0.04)}
SMALL = {"b": context(0.02, 50)}
RULES = [
    (RARE, {}, "No context teaches: the best one, `solution`, can teach 4% of the groups"),
    (RARE, {"right": 0.9, "wrong": 0.0}, "90% of the groups are all right, so take harder"),
    (RARE, {}, "15% of the groups are all wrong, so take easier questions or raise rollout.group_"),
    ({"a": context(-0.1, 50), **SMALL}, {}, "No context is worth distilling: with `b`, the gap is"),
    (SMALL, {}, "rewards alone (--loss.distillation 0), which differ in 80% of the groups"),
    (SMALL, {"mixed": 0.01}, "take easier questions"),
    (
        {"a": context(0.2, 50), "b": context(0.3, 31)},
        {},
        "Take `b`: it predicts +0.20 to +0.45 and keeps doubt (from 60 to 31 words per 1,000",
    ),
    (
        {"a": context(0.2, 50), "b": context(0.3, 29)},
        {},
        "`b` predicts +0.20 to +0.45 but takes doubt from 60 to 29 words per 1,000 tokens: try "
        "`a`, which predicts +0.13 to +0.30 and keeps it (from 60 to 50",
    ),
    ({**SMALL, "c": context(0.3, 29)}, {}, "no context that teaches keeps it: compare with"),
]


@pytest.mark.parametrize(("contexts", "shares", "words"), RULES)
def test_each_rule_recommends_in_one_sentence(contexts, shares, words):
    said = figures.recommendation(contexts, groups(**shares), least_groups=0.1, least_doubt=0.5)
    assert words in said
    assert said.endswith(".") and not re.search(r"\.\s+[A-Z]", said) and "\n" not in said


def test_the_page_has_every_context_once_per_table_and_one_recommendation():
    one = context(0.3, 29)
    alone = figures.of_answers(answers(np.eye(4)))
    nothing = figures.ContextFigures(groups=one.groups, completions=0.0)
    page = figures.page(
        title="mine.py",
        asked="model, 4 training questions x 4 answers",
        alone=alone,
        groups=groups(),
        contexts={"solution": one, "nothing": nothing},
        costs={"solution": {"s per step": "3.1"}, "nothing": {}},
        advice="Take it.",
    )
    assert page.count("| `solution` |") == page.count("| `nothing` |") == 2
    assert page.count("Recommendation") == 1 and "| 3.1 |" in page
    assert "nan" not in page and "0.25 (" in page
