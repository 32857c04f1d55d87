"""Which positions are forks: by hand, and as plain formulas in float64 have it."""

import forked
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives import divergences, forks

CASES = {
    "sure": ([0.99], False, False),
    "two, one of them rare": ([0.9, 0.1], False, False),
    "two of little entropy": ([0.65, 0.35], False, False),
    "two": ([0.55, 0.45], True, True),
    "three": ([0.7, 0.15, 0.15], True, True),
    "one and many": ([0.6], True, False),
    "many": ([], True, False),
}


def logits(named, size=60):
    """Returns logits of the named probabilities; the other entries share the rest."""
    rest = (1 - sum(named)) / (size - len(named))
    return np.log(np.maximum([*named, *[rest] * (size - len(named))], 1e-30))


@pytest.mark.parametrize("name", CASES)
def test_a_fork_has_a_high_entropy_and_two_open_tokens(name):
    named, high, fork = CASES[name]
    nats, open_tokens = divergences.entropy(jnp.asarray(logits(named), jnp.float32))
    assert forks.is_high(nats) == high and forks.is_fork(nats, open_tokens) == fork
    assert (high, fork) == tuple(map(bool, forked.flags(logits(named))))
    assert open_tokens == sum(p >= 0.1 for p in named)


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_both_functions_find_the_forks_of_a_float64_reference(spread):
    rng = np.random.default_rng(0)
    p, q = (spread * rng.standard_normal((200, 40), np.float32) for _ in "pq")
    token = jnp.zeros(200, jnp.int32)
    one = divergences.entropy(jnp.asarray(p))
    pair = divergences.compare(p, q, token)
    for x, found in (
        (p, one),
        (p, (pair.p_entropy, pair.p_open)),
        (q, (pair.q_entropy, pair.q_open)),
    ):
        high, fork = forked.flags(x)
        np.testing.assert_array_equal(forks.is_high(found[0]), high)
        np.testing.assert_array_equal(forks.is_fork(*found), fork)
        assert spread == 0.5 or 0.1 < fork.mean() < high.mean()


def test_the_constants_are_those_of_the_page():
    from parity import PAGE

    page = PAGE.read_text(encoding="utf-8")
    assert f"| `ENTROPY` | {forks.ENTROPY} nats |" in page
    assert f"`CONTINUATIONS` | {forks.PROBABILITY} and {forks.CONTINUATIONS} |" in page
