"""Each choice of what is learned from against its equation in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import marks
import numpy as np
import pytest

from sdjax.config import Loss
from sdjax.errors import UserError
from sdjax.objectives import learn_from
from sdjax.objectives.token_weights import TokenStats

LENGTHS = (3, 10, 1, 26)
SAMPLE = np.concatenate([np.full(n, i) for i, n in enumerate(LENGTHS)] + [np.full(5, -1)])
INDEX = np.concatenate([np.arange(n) for n in (*LENGTHS, 5)])
CORRECT = np.array([True, False, True, False])


def stats(seed=0):
    """Returns the tokens of four completions and five places of padding."""
    rng, n = np.random.default_rng(seed), len(SAMPLE)
    return TokenStats(
        token=jnp.arange(n),
        index=jnp.asarray(INDEX),
        length=jnp.asarray(np.array(LENGTHS)[SAMPLE]),
        student_logprob=jnp.asarray(-2 * rng.random(n), jnp.float32),
        # The third completion has no pivotal token.
        teacher_logprob=jnp.asarray(np.where(SAMPLE == 2, 0, -6) * rng.random(n), jnp.float32),
        student_entropy=jnp.ones(n),
        teacher_entropy=jnp.ones(n),
        pass_rate=jnp.ones(n),
        epistemic=jnp.zeros(n, bool),
        correct=jnp.asarray(CORRECT[SAMPLE]),
    )


def pivotal(s, cfg, most=10.0):
    r = np.asarray(s.student_logprob, np.float64) - np.asarray(s.teacher_logprob, np.float64)
    r = np.minimum(r, 2.5)
    out = np.ones(len(r))
    for i in range(len(LENGTHS)):
        own = SAMPLE == i
        is_pivotal = own & (r >= cfg.pivotal_gap)
        if is_pivotal.any():
            out[own] = min(np.exp(r[is_pivotal].mean()), most)
    return out


def before_drift(s, cfg):
    a = np.abs(
        np.asarray(s.teacher_logprob, np.float64) - np.asarray(s.student_logprob, np.float64)
    )
    out = np.ones(len(a))
    for i in range(len(LENGTHS)):
        own = SAMPLE == i
        before = np.concatenate([[0.0], np.cumsum(a[own])[:-1]])
        out[own] = 1 + 0.5 * (1 - before / a[own].sum())
    return out


def place(s):
    return INDEX / np.array(LENGTHS)[SAMPLE]


EQUATIONS = {
    "all": lambda s, cfg: np.ones(len(SAMPLE)),
    "right": lambda s, cfg: CORRECT[SAMPLE] * 1.0,
    "wrong": lambda s, cfg: 1.0 - CORRECT[SAMPLE],
    "pivotal": pivotal,
    "pivotal_over_mean": lambda s, cfg: pivotal(s, cfg, np.inf),
    "before_drift": before_drift,
    "early": lambda s, cfg: place(s) < cfg.learn_share,
    "late": lambda s, cfg: place(s) >= 1 - cfg.learn_share,
}


def weigh(name, s, cfg):
    mean = learn_from.completion_mean(jnp.asarray(SAMPLE), len(LENGTHS))
    return np.asarray(learn_from.get(name).weight(s, cfg, mean))


def test_every_choice_of_the_table_has_an_equation_here():
    assert EQUATIONS.keys() == learn_from.LEARN_FROM.keys()


@pytest.mark.parametrize("name", marks.heavy_but(EQUATIONS.keys() - {"before_drift"}, EQUATIONS))
def test_a_choice_is_its_equation(name):
    s, cfg = stats(), Loss(learn_from=name, learn_share=0.25)
    got, real = weigh(name, s, cfg), SAMPLE >= 0
    assert got.dtype == np.float32 and np.all(np.isfinite(got))
    np.testing.assert_allclose(got[real], EQUATIONS[name](s, cfg)[real], rtol=1e-5)


def test_a_completion_without_pivotal_tokens_has_weight_one_and_no_other():
    got = weigh("pivotal", stats(), Loss(learn_from="pivotal"))
    assert np.all(got[SAMPLE == 2] == 1)
    assert np.all(got[(SAMPLE >= 0) & (SAMPLE != 2)] > np.exp(0.8) - 1e-6)
    assert np.all(got <= 10)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_early_and_late_take_their_share_of_a_long_completion(share):
    cfg = Loss(learn_share=share)
    for name in ("early", "late"):
        taken = weigh(name, stats(), cfg)[SAMPLE == 3].sum()
        assert abs(taken - share * 26) <= 1


def test_a_mean_leaves_out_padding_and_other_completions():
    x = jnp.asarray(np.where(SAMPLE < 0, 1e6, INDEX), jnp.float32)
    mean = learn_from.completion_mean(jnp.asarray(SAMPLE), len(LENGTHS))
    of = np.asarray(mean(x, jnp.asarray(INDEX % 2 == 0)))
    for i, n in enumerate(LENGTHS):
        np.testing.assert_allclose(of[SAMPLE == i], np.arange(0, n, 2).mean(), rtol=1e-6)


@pytest.mark.heavy
def test_the_first_token_weighs_half_more_and_a_completion_without_drift_too():
    got = weigh("before_drift", stats(), Loss())
    np.testing.assert_allclose(got[INDEX == 0][: len(LENGTHS)], 1.5)
    assert np.all(got[SAMPLE >= 0] >= 1) and got[SAMPLE == 3][-1] < 1.1
    same = stats()
    same = replace(same, teacher_logprob=same.student_logprob)
    np.testing.assert_allclose(weigh("before_drift", same, Loss())[SAMPLE >= 0], 1.5)


@pytest.mark.heavy
def test_drift_does_not_cross_rows_or_completions():
    # In two rows, with padding that is no number.
    s = stats()
    gap = jnp.where(SAMPLE < 0, jnp.nan, s.teacher_logprob)
    rows = jax.tree.map(lambda x: jnp.stack([x, x]), replace(s, teacher_logprob=gap))
    of = jnp.asarray(np.stack([SAMPLE, np.where(SAMPLE < 0, -1, SAMPLE + len(LENGTHS))]))
    mean = learn_from.completion_mean(of, 2 * len(LENGTHS))
    got = np.asarray(learn_from.get("before_drift").weight(rows, Loss(), mean))
    for row in got:
        real = SAMPLE >= 0
        np.testing.assert_allclose(row[real], before_drift(s, None)[real], rtol=1e-5)


def test_a_choice_that_divides_the_whole_loss_refuses_a_blend():
    cfg = Loss(learn_from="pivotal_over_mean", distillation=0.5)
    with pytest.raises(UserError, match=r"loss.distillation is 0.5: must be 1 .*pivotal_over_mean"):
        learn_from.check(cfg)
    learn_from.check(replace(cfg, distillation=1.0))
    learn_from.check(replace(cfg, learn_from="pivotal"))


def test_the_choices_that_read_a_whole_completion_say_so():
    whole = [n for n, rule in learn_from.LEARN_FROM.items() if rule.whole]
    assert whole == ["pivotal", "pivotal_over_mean", "before_drift"]


def test_an_unknown_choice_names_the_known_ones():
    with pytest.raises(UserError, match=r"loss.learn_from is 'typo': one of all, right, .*late"):
        learn_from.get("typo")
