"""The curve of pass@k: its points are the estimates, and it is drawn as a PNG file."""

import random

import pytest

from sdjax.analysis import accuracy, pass_curve


def measured(right, k):
    rng = random.Random(right)
    return accuracy.measure([[rng.random() < right for _ in range(k)] for _ in range(30)])


def test_the_points_of_64_answers_are_pass_at_1_to_64():
    found = measured(0.1, 64)
    curve = pass_curve.points(found)
    assert list(curve) == [1, 2, 4, 8, 16, 32, 64]
    assert curve[1] == found.estimates["avg@64"] and curve[8] == found.estimates["pass@8"]
    values = [estimate.value for estimate in curve.values()]
    assert values == sorted(values) and values[0] == pytest.approx(0.1, abs=0.03)
    assert all(e.low <= e.value <= e.high for e in curve.values())


def test_one_answer_has_one_point():
    assert list(pass_curve.points(measured(0.5, 1))) == [1]


def test_the_curve_is_a_png_file(tmp_path):
    pytest.importorskip("matplotlib")
    by_set = {"aime26": measured(0.1, 64), "hmmt25": measured(0.02, 64)}
    pass_curve.write(by_set, tmp_path / "pass_at_k.png")
    assert (tmp_path / "pass_at_k.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
