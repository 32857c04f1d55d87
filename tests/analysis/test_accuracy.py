import itertools
import json
import random
import re

import numpy as np
import pytest

from sdjax.analysis import accuracy


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_correct_completion(n):
    for correct in range(n + 1):
        grades = [i < correct for i in range(n)]
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(grades, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert accuracy.pass_at(n, correct, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_neither_overflows_nor_rounds_at_many_completions():
    assert accuracy.pass_at(2000, 1, 1000) == 0.5
    assert accuracy.pass_at(4000, 0, 4000) == 0.0
    assert 0 < accuracy.pass_at(10**4, 1, 1) == 1e-4


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_out_of_range_is_refused(n, correct, k):
    with pytest.raises(ValueError, match="needs 1 <= k <= n"):
        accuracy.pass_at(n, correct, k)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        (["4", "4", "5", "4"], "4", 1.0),
        (["5", "4", "5", "6"], "4", 0.0),
        (["4", "5"], "4", 0.5),
        (["4", "5", "6"], "4", 1 / 3),
        ([None, None, "4"], "4", 1.0),
        ([None, None], "4", 0.0),
        ([None, "5", "5"], "4", 0.0),
    ],
)
def test_the_majority_is_the_commonest_answer_and_a_tie_its_expectation(answers, right, expected):
    correct = [answer == right for answer in answers]
    assert accuracy.majority(correct, answers) == pytest.approx(expected)


def test_a_correct_completion_without_an_answer_has_no_vote():
    assert accuracy.majority([True, False], [None, "5"]) == 0.0


def test_measure_reports_every_estimate_in_order():
    correct = [[True, True, False, True], [False, False, False, True], [False] * 4]
    answers = [["4", "4", "5", "4"], ["1", "2", "2", "3"], [None, "7", "7", "8"]]
    result = accuracy.measure(correct, answers)
    assert list(result.estimates) == ["avg@4", "pass@2", "pass@4", "maj@4"]
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    assert values["avg@4"] == pytest.approx(4 / 12)
    assert list(accuracy.measure([[True], [False]]).estimates) == ["avg@1"]
    assert accuracy.measure(correct, ks=[1]).estimates["pass@1"].value == values["avg@4"]
    assert values["pass@2"] == pytest.approx((1 + 0.5) / 3)
    assert values["pass@4"] == pytest.approx(2 / 3)
    assert values["maj@4"] == pytest.approx(1 / 3)
    assert (result.examples, result.k) == (3, 4)


def test_intervals_hold_the_value_and_narrow_with_the_examples():
    rng = random.Random(0)
    correct = [[rng.random() < 0.4 for _ in range(4)] for _ in range(50)]
    few, many = accuracy.measure(correct[:10]), accuracy.measure(correct * 4)
    for name, estimate in accuracy.measure(correct).estimates.items():
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1
        width = estimate.high - estimate.low
        assert few.estimates[name].high - few.estimates[name].low > width
        assert many.estimates[name].high - many.estimates[name].low < width


def test_all_right_and_all_wrong_have_the_exact_interval_of_independent_examples():
    for k in (1, 2, 16):
        for value in (False, True):
            for estimate in accuracy.measure(
                [[value] * k] * 32, [["5"] * k] * 32
            ).estimates.values():
                assert estimate.value == value
                edges = (0.0, 0.10888) if not value else (1 - 0.10888, 1.0)
                assert (estimate.low, estimate.high) == pytest.approx(edges, abs=1e-5)


@pytest.mark.heavy
def test_single_answers_have_the_interval_of_clopper_and_pearson():
    from scipy.stats import binomtest

    for right, number in ((1, 10), (7, 8), (50, 100)):
        correct = [[i < right] for i in range(number)]
        estimate = accuracy.measure(correct).estimates["avg@1"]
        exact = binomtest(right, number).proportion_ci(method="exact")
        assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def _drawn(rng, law, size):
    """Returns bool[evaluations, questions, answers] of a law, and its mean of each question."""
    kind, *numbers = law
    trials, questions, answers = size
    if kind == "beta":
        p = rng.beta(*numbers, size=(trials, questions, 1))
    else:
        p = np.full((trials, questions, 1), numbers[0])
    drawn = rng.random((trials, questions, 1 if kind == "equal" else answers)) < p
    return np.broadcast_to(drawn, size)


LAWS = {
    **{f"answers of a question equal, p {p}": ("equal", p) for p in (0.5, 0.9, 0.97, 0.997)},
    **{f"answers independent, p {p}": ("independent", p) for p in (0.5, 0.9, 0.97)},
    **{
        f"p of a question from Beta({a:g}, {b:g})": ("beta", a, b)
        for a, b in ((0.5, 0.5), (1, 9), (1, 49), (0.1, 0.9), (0.02, 0.98))
    },
}
TRIALS = 2000


def _coverage(rng, law, questions, answers):
    """Returns the share of evaluations whose interval of avg@k holds the truth."""
    truth = law[1] / sum(law[1:]) if law[0] == "beta" else law[1]
    drawn = _drawn(rng, law, (TRIALS, questions, answers))
    found = accuracy.intervals(drawn.mean(2), completions=answers)
    return np.mean([e.low <= truth <= e.high for e in found])


def test_intervals_cover_the_truth_as_often_as_they_say_near_0_and_1_too():
    rng = np.random.default_rng(0)
    for name, law in LAWS.items():
        for questions in (8, 32, 100):
            # The standard error of .95 is .005.
            assert _coverage(rng, law, questions, 2) > 0.935, (name, questions)


@pytest.mark.slow
def test_intervals_cover_the_truth_with_any_number_of_questions_and_answers():
    rng = np.random.default_rng(1)
    for name, law in LAWS.items():
        for questions in (1, 2, 3, 4, 8, 16, 32, 100, 300):
            for answers in (1, 2, 4, 16):
                assert _coverage(rng, law, questions, answers) > 0.935, (name, questions, answers)


def test_intervals_of_pass_and_maj_cover_their_truth_too():
    """Answers of a question are draws of its own p; the truth is the mean over many questions."""
    rng = np.random.default_rng(2)
    k, questions = 4, 32
    for a, b in ((0.5, 0.5), (1, 9), (9, 1)):
        right = np.array([[accuracy.pass_at(k, c, 2) for c in range(k + 1)]])
        votes = np.array(
            [
                accuracy.majority([i < c for i in range(k)], ["y"] * c + ["n"] * (k - c))
                for c in range(k + 1)
            ]
        )
        for table in (right[0], votes):
            counts = rng.binomial(k, rng.beta(a, b, size=(2000, questions)))
            truth = table[rng.binomial(k, rng.beta(a, b, size=10**6))].mean()
            found = accuracy.intervals(table[counts], completions=k)
            assert np.mean([e.low <= truth <= e.high for e in found]) > 0.94


@pytest.mark.parametrize("correct", [[], [[]], [[True], [True, False]]])
def test_unequal_or_no_completions_are_refused(correct):
    with pytest.raises(ValueError, match="completions"):
        accuracy.measure(correct)


def test_the_table_is_markdown_and_the_dict_is_json():
    result = accuracy.measure([[True, False], [True, True]], ks=[2])
    lines = result.to_markdown().splitlines()
    assert lines[0] == "| 2 examples | % | 95% interval |"
    assert re.match(r"\| avg@2 \| 75\.0 \| \d+\.\d to \d+\.\d \|$", lines[2])
    assert {line.count("|") for line in lines} == {4}
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["avg@2"]["low"] < plain["avg@2"]["value"] == 0.75 < plain["avg@2"]["high"]
    assert plain["pass@2"]["value"] == 1.0 and plain["k"] == 2
