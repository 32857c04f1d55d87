import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.token_weights import aggregation_weights as weights

LENGTH = jnp.array([4, 0, 1, 10])
EVERYONE = jnp.ones(4, bool)
SOME = jnp.array([True, False, True, False])


def total(counted, losses=None, **kwargs):
    """Returns the loss where every token of completion i has loss losses[i]."""
    losses = jnp.ones(4) if losses is None else losses
    return float(jnp.sum(weights(LENGTH, counted, **kwargs) * LENGTH * losses))


def test_equal_losses_aggregate_to_themselves():
    present = LENGTH > 0
    for kind in ("sequence", "token"):
        got = total(present, aggregation=kind, average_over="distilled")
        np.testing.assert_allclose(got, 1.0, rtol=1e-6)


def test_sequence_weighs_completions_equally_and_token_by_length():
    losses = jnp.array([1.0, 0.0, 2.0, 3.0])
    got = total(EVERYONE, losses, aggregation="sequence", average_over="all")
    np.testing.assert_allclose(got, (1 + 0 + 2 + 3) / 4, rtol=1e-6)
    got = total(EVERYONE, losses, aggregation="token", average_over="all")
    np.testing.assert_allclose(got, (4 + 2 + 30) / 15, rtol=1e-6)
    got = total(EVERYONE, losses, aggregation="constant", average_over="all", constant=20.0)
    np.testing.assert_allclose(got, (4 + 2 + 30) / 20 / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "over_all", "over_some"),
    [("sequence", 2 / 4, 1.0), ("token", 5 / 15, 1.0), ("constant", 5 / 4, 5 / 2)],
)
def test_completions_that_are_not_counted_stay_in_the_denominator_only_if_asked(
    kind, over_all, over_some
):
    for over, want in [("all", over_all), ("distilled", over_some)]:
        np.testing.assert_allclose(
            total(SOME, aggregation=kind, average_over=over), want, rtol=1e-6
        )
        assert not weights(LENGTH, SOME, aggregation=kind, average_over=over)[~SOME].any()


@pytest.mark.parametrize("kind", ["sequence", "token", "constant"])
def test_an_update_without_a_counted_completion_weighs_nothing(kind):
    nobody = jnp.zeros(4, bool)
    got = weights(LENGTH, nobody, aggregation=kind, average_over="distilled")
    assert np.all(got == 0) and got.dtype == jnp.float32
