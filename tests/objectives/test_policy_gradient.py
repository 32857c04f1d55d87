import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Policy
from sdjax.errors import UserError
from sdjax.objectives import policy_gradient as pg


def test_a_completion_alone_in_its_group_keeps_its_reward():
    for kind in ("mean", "mean_std"):
        got = pg.advantages(np.array([1.0, 0.5, 0.0]), np.array([0, 7, 7]), Policy(advantage=kind))
        assert got[0] == 1.0 and got[1] == -got[2] > 0


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7, 1e-3, -1.1, 1e30, 5e-324])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 64])
@pytest.mark.parametrize("kind", typing.get_args(typing.get_type_hints(Policy)["advantage"]))
def test_equal_rewards_have_no_advantage_at_all(kind, size, reward):
    for dtype in (np.float32, np.float64):
        rewards = np.full(size, reward, dtype)
        got = pg.advantages(rewards, np.zeros(size, int), Policy(advantage=kind))
        assert got.dtype == np.float32 and np.all(got == 0), (dtype, got)


@pytest.mark.parametrize("kind", ["mean", "mean_std"])
def test_advantages_are_those_of_the_formula(kind):
    rng = np.random.default_rng(0)
    rewards, group = rng.normal(0.3, 2, 60), np.repeat(np.arange(12), 5)
    got = pg.advantages(rewards, group, Policy(advantage=kind))
    by_group = rewards.reshape(12, 5)
    wanted = by_group - by_group.mean(1, keepdims=True)
    if kind == "mean_std":
        wanted = wanted / (by_group.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got.reshape(12, 5), wanted, rtol=1e-6, atol=1e-7)


def test_overlong_shaping_falls_over_the_buffer_to_the_penalty():
    rewards, length = np.ones(5), np.array([10, 80, 85, 90, 100])
    got = pg.overlong_shaped(rewards, length, 100, Policy(overlong_buffer=20))
    np.testing.assert_allclose(got, [1.0, 1.0, 0.75, 0.5, 0.0])
    half = Policy(overlong_buffer=20, overlong_penalty=0.5)
    np.testing.assert_allclose(pg.overlong_shaped(rewards, length, 100, half)[-1], 0.5)
    np.testing.assert_array_equal(pg.overlong_shaped(rewards, length, 100, Policy()), rewards)


def test_a_ratio_clipped_on_the_good_side_has_no_gradient():
    cfg = Policy(clip_low=0.2, clip_high=0.28, dual_clip=None)

    def slope(log_ratio, advantage):
        return jax.grad(lambda x: pg.clipped_loss(x, advantage, cfg))(jnp.log(log_ratio))

    assert slope(1.27, 1.0) != 0 and slope(1.29, 1.0) == 0 and slope(0.5, 1.0) != 0
    assert slope(0.81, -1.0) != 0 and slope(0.79, -1.0) == 0 and slope(2.0, -1.0) != 0


def test_the_dual_clip_bounds_the_loss_of_bad_completions_only():
    cfg = Policy(dual_clip=3.0)
    log_ratio = jnp.log(jnp.array([2.9, 3.1, 50.0]))
    np.testing.assert_allclose(pg.clipped_loss(log_ratio, -2.0, cfg), [5.8, 6.0, 6.0], rtol=1e-6)
    clipped, dual = pg.was_clipped(log_ratio, jnp.full(3, -2.0), cfg)
    assert not clipped.any() and dual.tolist() == [False, True, True]
    assert not pg.was_clipped(log_ratio, jnp.full(3, 2.0), cfg)[1].any()


def test_sequence_ratio_is_the_geometric_mean_and_so_is_its_gradient():
    keys = jax.random.split(jax.random.key(0), 2)
    new, old = (-jnp.abs(jax.random.normal(k, (3, 8))) for k in keys)
    sample = jnp.array([[0] * 5 + [-1] * 3, [2] * 8, [1] * 2 + [0] * 3 + [-1] * 3])
    advantage = jnp.array([0.7, -1.0, 0.3])
    cfg = Policy(ratio="sequence", clip_low=9e-1, clip_high=9.0, dual_clip=None)
    length = jnp.array([jnp.sum(sample == i) for i in range(3)])

    def given(new):
        at = jnp.maximum(sample, 0)
        each = pg.policy_loss(new, old, advantage[at], cfg, sample=sample, num_samples=3)
        return jnp.sum(jnp.where(sample >= 0, each / length[at], 0.0))

    def wanted(new):
        of = [jnp.sum(jnp.where(sample == i, new - old, 0.0)) / length[i] for i in range(3)]
        return -jnp.sum(advantage * jnp.exp(jnp.stack(of)))

    (got, slope), (want, want_slope) = (
        jax.jit(jax.value_and_grad(f))(new) for f in (given, wanted)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-5, atol=1e-8)


def test_padding_neither_enters_a_sequence_ratio_nor_makes_a_nan():
    new, old = jnp.array([[-1.0, jnp.nan]]), jnp.array([[-1.5, 0.0]])
    for pad in (-1, 1):
        sample = jnp.array([[0, pad]])
        first = lambda x, s=sample: pg.sequence_log_ratio(x, old, s, 1)[0, 0]  # noqa: E731
        got, grad = jax.jit(jax.value_and_grad(first))(new)
        np.testing.assert_allclose(got, 0.5)
        np.testing.assert_allclose(grad, [[1.0, 0.0]])


def test_ratios_are_bounded_above_and_carry_no_gradient():
    new, old = jnp.array([0.0, -1.0, -200.0]), jnp.array([-100.0, -1.1, 0.0])
    got = pg.importance_ratio(new, old, 2.0)
    np.testing.assert_allclose(got, [2.0, np.exp(0.1), np.exp(-20.0)], rtol=1e-5)
    assert not jax.grad(lambda x: pg.importance_ratio(x, old, 2.0).sum())(new).any()


@pytest.mark.parametrize("bad", [{"clip_low": 1.5}, {"dual_clip": 0.5}, {"overlong_buffer": -1}])
def test_impossible_settings_name_the_field(bad):
    with pytest.raises(UserError, match=f"policy.{next(iter(bad))}"):
        Policy(**bad)
