"""Each credit against its equation in float64."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Policy
from sdjax.errors import UserError
from sdjax.objectives import credits, learn_from

SHAPE = (3, 40)
MEAN = learn_from.completion_mean(jnp.arange(3)[:, None] * jnp.ones(SHAPE, int), 3)
"""Each row is a completion."""


def facts(seed=0):
    """Returns random facts; the last row has no advantage."""
    rng = np.random.default_rng(seed)
    advantage = np.array([[1.2], [-0.4], [0.0]], np.float32) * np.ones(SHAPE, np.float32)
    logprobs = [-5 * rng.random(SHAPE).astype(np.float32) for _ in range(3)]
    return credits.CreditFacts(
        advantage=jnp.asarray(advantage),
        distilled=jnp.asarray(rng.random(SHAPE) < 0.7),
        student_logprob=jnp.asarray(logprobs[0]),
        context_logprobs={
            # Near each other, so that not every tanh is 1.
            "solution": jnp.asarray(logprobs[1]),
            "wrong": jnp.asarray(logprobs[1] + 0.02 * rng.standard_normal(SHAPE)).astype("float32"),
        },
        unlikely=jnp.asarray(rng.random(SHAPE) < 0.2),
    )


def contrast(f, a, s):
    e = f["solution"] - f["wrong"]
    moved = a + np.where(f["distilled"], s / 2 * np.tanh(e / 0.02), 0.0)
    return np.where(np.sign(moved) == np.sign(a), moved, 0.0)  # without a change of sign


def contrast_means(f, a, s):
    """As the loss: the mean over changed tokens plus the mean over the others, times the length."""
    change = np.where(f["distilled"], s / 2 * np.tanh((f["solution"] - f["wrong"]) / 0.02), 0.0)
    out = np.zeros(SHAPE)
    for i in range(len(a)):
        changed = np.abs(change[i]) > 0.02
        for kind, credit in ((changed, contrast(f, a, s)[i]), (~changed, a[i])):
            out[i, kind] = credit[kind] * len(changed) / max(kind.sum(), 1)
    return out


def signed_gap(f, a, s):
    w = np.exp(f["solution"] - f["student"]) ** np.sign(a)
    w = np.clip(w, 0.8, 1.2)
    return np.where(f["distilled"], a * (1 - s / 2 + s / 2 * w), a)


EQUATIONS = {
    "advantage": lambda f, a, s: a,
    "contrast": contrast,
    "contrast_means": contrast_means,
    "signed_gap": signed_gap,
    "unlikely": lambda f, a, s: np.where(f["unlikely"], -s / 2, 0.0),
}


def test_every_credit_of_the_table_has_an_equation_here():
    assert EQUATIONS.keys() == credits.CREDITS.keys()


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", EQUATIONS)
def test_a_credit_is_its_equation(name, strength):
    x = facts()
    cfg = Policy(credit=name, credit_strength=strength)
    f = {n: np.asarray(v, np.float64) for n, v in x.context_logprobs.items()}
    f["student"] = np.asarray(x.student_logprob, np.float64)
    f |= {"distilled": np.asarray(x.distilled), "unlikely": np.asarray(x.unlikely)}
    wanted = EQUATIONS[name](f, np.asarray(x.advantage, np.float64), strength)
    got = credits.get(name).credit(x, cfg, MEAN)
    assert got.dtype == jnp.float32
    # Absolute part: a difference of float32 log-probabilities near 5, divided by 0.02. The shares
    # of contrast_means are .1 or more.
    atol = {"contrast": 3e-5, "contrast_means": 3e-4}.get(name, 1e-6)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", ["contrast", "contrast_means", "signed_gap"])
def test_a_credit_never_turns_the_sign_of_an_advantage(name):
    x = facts(1)
    got = np.asarray(credits.get(name).credit(x, Policy(credit=name, credit_strength=2.0), MEAN))
    assert np.all(got * np.asarray(x.advantage) >= 0) and np.all(got[2] == 0)


def test_without_a_solution_separate_means_are_the_advantage():
    x = replace(facts(), distilled=jnp.zeros(SHAPE, bool))
    got = credits.get("contrast_means").credit(x, Policy(credit="contrast_means"), MEAN)
    np.testing.assert_array_equal(got, x.advantage)


def test_separate_means_are_finite_at_padding():
    mean = learn_from.completion_mean(jnp.full(SHAPE, -1), 3)
    got = credits.get("contrast_means").credit(facts(), Policy(credit="contrast_means"), mean)
    assert np.all(np.isfinite(got))


def test_only_a_dense_credit_is_for_completions_without_advantage():
    advantage = np.array([0.5, 0.0, -0.5, np.nan])
    assert credits.has_credit(Policy(), advantage).tolist() == [True, False, True, True]
    assert credits.has_credit(Policy(credit="unlikely"), advantage).all()


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_the_share_of_unlikely_tokens_is_that_of_the_section(share):
    rng = np.random.default_rng(3)
    logprobs = [-5 * rng.random(n).astype(np.float32) for n in (300, 500, 1200)]
    below = credits.unlikely_below(Policy(credit_share=share), logprobs)
    assert np.mean(np.concatenate(logprobs) < below) == pytest.approx(share, abs=2e-3)


def test_an_update_without_tokens_has_a_bound_too():
    assert credits.unlikely_below(Policy(), []) == 0.0


def test_an_unknown_credit_names_the_known_ones():
    with pytest.raises(UserError, match=r"policy.credit is 'typo': one of advantage, .*unlikely"):
        credits.get("typo")
