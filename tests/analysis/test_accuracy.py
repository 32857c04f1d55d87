import itertools
import json
import random

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
    assert list(result.estimates) == ["avg@4", "pass@1", "pass@2", "pass@4", "maj@4"]
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    assert values["avg@4"] == values["pass@1"] == pytest.approx(4 / 12)
    assert values["pass@2"] == pytest.approx((1 + 0.5) / 3)
    assert values["pass@4"] == pytest.approx(2 / 3)
    assert values["maj@4"] == pytest.approx(1 / 3)
    assert (result.examples, result.k) == (3, 4)


def test_intervals_repeat_with_the_seed_and_hold_the_value():
    rng = random.Random(0)
    correct = [[rng.random() < 0.4 for _ in range(4)] for _ in range(50)]
    first, again = accuracy.measure(correct, seed=1), accuracy.measure(correct, seed=1)
    assert first == again != accuracy.measure(correct, seed=2)
    for estimate in first.estimates.values():
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        scores = rng.random((1, 60)) < 0.5
        (estimate,) = accuracy.bootstrap(scores.astype(float), seed=trial, resamples=400)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 270 <= covered <= 297  # 285 are expected; percentile intervals are slightly narrow


def test_the_interval_of_equal_examples_is_a_point():
    result = accuracy.measure([[True, False]] * 10)
    assert result.estimates["avg@2"] == accuracy.Estimate(0.5, 0.5, 0.5)


@pytest.mark.parametrize("correct", [[], [[]], [[True], [True, False]]])
def test_unequal_or_no_completions_are_refused(correct):
    with pytest.raises(ValueError, match="completions"):
        accuracy.measure(correct)


def test_the_table_is_markdown_and_the_dict_is_json():
    result = accuracy.measure([[True, False], [True, True]], ks=[2])
    lines = result.to_markdown().splitlines()
    assert lines[0] == "| 2 examples | % | 95% interval |"
    assert lines[2].startswith("| avg@2 | 75.0 | 50.0 to 100.0 |")
    assert {line.count("|") for line in lines} == {4}
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["avg@2"] == {"value": 0.75, "low": 0.5, "high": 1.0}
    assert plain["pass@2"]["value"] == 1.0 and plain["k"] == 2
