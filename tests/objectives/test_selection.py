import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.selection import selected, top_k


def oracle(x, k):
    """Returns bool[..., V]: what lax.top_k takes."""
    _, index = jax.lax.top_k(x, k)
    return np.asarray(jnp.any(jax.nn.one_hot(index, x.shape[-1], dtype=bool), axis=-2))


@pytest.mark.parametrize(("size", "k"), [(7, 1), (64, 100), (1000, 5), (1024, 20), (4999, 100)])
def test_selection_is_that_of_a_sort(size, k):
    x = jax.random.normal(jax.random.key(size + k), (3, 4, size))
    got = selected(x, top_k(x, min(k, size)))
    assert np.array_equal(got, oracle(x, min(k, size)))


@pytest.mark.parametrize(("size", "k"), [(96, 90), (1000, 17), (4999, 90)])
def test_among_equal_values_the_first_are_taken_as_a_sort_does(size, k):
    for values in (1, 2, 5, 60):
        x = jax.random.randint(jax.random.key(values), (8, size), 0, values).astype(jnp.float32)
        got = selected(x, top_k(x, k))
        assert np.array_equal(got, oracle(x, k))
        assert np.all(np.sum(got, -1) == k)


def test_the_largest_may_all_lie_in_one_block_or_at_the_ragged_end():
    size = 4099
    for start in (0, 2048, size - 50):
        x = jax.random.normal(jax.random.key(start), (2, size))
        x = x.at[:, start : start + 50].add(100.0)
        got = selected(x, top_k(x, 50))
        assert np.all(got[:, start : start + 50]) and np.sum(got) == 100


def test_selection_works_under_jit_on_a_real_vocabulary():
    x = jax.random.normal(jax.random.key(0), (2, 151936))
    got = jax.jit(lambda x: selected(x, top_k(x, 100)))(x)
    assert np.array_equal(got, oracle(x, 100))
