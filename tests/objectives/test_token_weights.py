import dataclasses

import contracts
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Loss
from sdjax.errors import UserError
from sdjax.objectives import token_weights
from sdjax.objectives.token_weights import TokenStats


def stats(**given):
    n = 6
    zero = jnp.zeros(n)
    base = TokenStats(
        token=jnp.arange(n),
        index=jnp.arange(n),
        length=jnp.full(n, n),
        student_logprob=zero - 1.0,
        teacher_logprob=zero - 2.0,
        student_entropy=zero + 0.5,
        teacher_entropy=zero + 0.5,
        pass_rate=zero + 0.5,
        epistemic=jnp.zeros(n, bool),
        correct=jnp.zeros(n, bool),
    )
    return dataclasses.replace(base, **given)


def weigh(name, s, **cfg):
    return np.asarray(token_weights.get(name)(s, Loss(token_weights=name, **cfg)))


def test_position_rises_from_the_floor_and_is_half_way_up_at_its_center():
    s = stats(index=jnp.arange(6) * 1000, length=jnp.full(6, 6000))
    got = weigh("position", s, weight_floor=0.25, position_center=0.3, position_width=0.01)
    assert np.all(np.diff(got) >= 0)
    np.testing.assert_allclose(got[[0, -1]], [0.25, 1.0], atol=1e-6)
    middle = stats(index=jnp.full(6, 29), length=jnp.full(6, 100))
    got = weigh("position", middle, weight_floor=0.5, position_center=0.295)
    np.testing.assert_allclose(got, 0.75, rtol=1e-6)


def test_position_looks_at_the_place_in_the_completion_not_at_its_length():
    short = stats(index=jnp.array([0, 4, 9, 0, 4, 9]), length=jnp.full(6, 10))
    long = stats(index=jnp.array([0, 4, 9, 0, 4, 9]) * 10 + 4, length=jnp.full(6, 100))
    np.testing.assert_allclose(weigh("position", short), weigh("position", long), atol=0.03)


def test_teacher_entropy_lowers_weights_to_a_floor_over_zero():
    s = stats(teacher_entropy=jnp.array([0.0, 0.5, 1.0, 2.0, 5.0, 50.0]))
    got = weigh("teacher_entropy", s, weight_floor=0.1, entropy_scale=1.0)
    assert np.all(np.diff(got) < 0)
    np.testing.assert_allclose(got[[0, -1]], [1.0, 0.1], rtol=1e-6)


def test_pass_rate_counts_middling_questions_most_and_settled_ones_not():
    p = jnp.array([0.0, 0.125, 0.5, 0.875, 1.0, 1.0000001])
    got = weigh("pass_rate", stats(pass_rate=p))
    np.testing.assert_allclose(got, [0, 0.3307189, 0.5, 0.3307189, 0, 0], rtol=1e-5, atol=1e-6)


def test_anti_ascends_where_the_teacher_is_unsure_and_stops_where_it_is_certain():
    s = stats(teacher_entropy=jnp.array([0.0, 0.05, 0.1, 0.11, 1.0, 3.0]))
    assert weigh("anti", s, entropy_gate=0.1).tolist() == [0, 0, -1, -1, -1, -1]


def test_epistemic_weighs_epistemic_words_apart():
    s = stats(epistemic=jnp.arange(6) % 3 == 0)
    assert weigh("epistemic", s).tolist() == [0, 1, 1, 0, 1, 1]
    assert weigh("epistemic", s, epistemic_weight=0.5).tolist() == [0.5, 1, 1, 0.5, 1, 1]


@pytest.mark.parametrize("name", list(token_weights.TOKEN_WEIGHTS))
def test_every_scheme_keeps_the_contract(name):
    contracts.check_token_weights(token_weights.get(name), Loss(token_weights=name))


def test_an_unknown_scheme_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match=r"loss.token_weights is 'sqrt': one of ") as raised:
        token_weights.get("sqrt")
    listed = str(raised.value).partition("one of ")[2].split(", ")
    assert set(listed) == set(token_weights.TOKEN_WEIGHTS)
