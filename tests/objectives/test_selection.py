import functools

import jax
import marks
import numpy as np
import pytest

from sdjax.objectives import selection


def oracle(x, k):
    """Returns bool[..., V]: what a stable sort in falling order takes."""
    index = np.argsort(-np.asarray(x), axis=-1, kind="stable")[..., :k]
    taken = np.zeros(x.shape, bool)
    np.put_along_axis(taken, index, True, axis=-1)
    return taken


@functools.partial(jax.jit, static_argnums=1)
def taken(x, k):
    """Returns bool[..., V]: what our selection takes."""
    return selection.selected(x, selection.top_k(x, k))


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


SIZES = [(7, 1), (64, 100), (1000, 5), (1024, 20), (4999, 100)]


@pytest.mark.parametrize(("size", "k"), marks.heavy_but([(64, 100), (1000, 5)], SIZES))
def test_selection_is_that_of_a_sort(size, k):
    x = normal(size + k, (3, 4, size))
    assert np.array_equal(taken(x, min(k, size)), oracle(x, min(k, size)))


@pytest.mark.parametrize(
    ("size", "k"), marks.heavy_but([(96, 90)], [(96, 90), (1000, 17), (4999, 90)])
)
def test_among_equal_values_the_first_are_taken_as_a_sort_does(size, k):
    for values in (1, 2, 5, 60):
        x = np.random.default_rng(values).integers(0, values, (8, size)).astype(np.float32)
        got = taken(x, k)
        assert np.array_equal(got, oracle(x, k))
        assert np.all(np.sum(got, -1) == k)


def test_the_largest_may_all_lie_in_one_block_or_at_the_ragged_end():
    size = 4099
    for start in (0, 2048, size - 50):
        x = normal(start, (2, size))
        x[:, start : start + 50] += 100.0
        got = taken(x, 50)
        assert np.all(got[:, start : start + 50]) and np.sum(got) == 100


def test_selection_works_on_a_real_vocabulary():
    x = normal(0, (2, 151936))
    assert np.array_equal(taken(x, 100), oracle(x, 100))
