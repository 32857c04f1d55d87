import itertools

import contracts
import jax
import jax.numpy as jnp
import marks
import numpy as np
import pytest

from sdjax.config import Loss
from sdjax.errors import UserError
from sdjax.objectives import divergences

ALPHAS = (0.0, 0.05, 0.5, 0.9, 1.0)
# One inner value in the tests that always run; the ends have formulas of their own.
ALWAYS = (0.0, 0.05, 1.0)


def logits(seed, shape=(6, 29), spread=2.0):
    rng = np.random.default_rng(seed)
    student, teacher = (np.float32(spread) * rng.standard_normal(shape, np.float32) for _ in "ab")
    return jnp.asarray(student), jnp.asarray(student / 2 + teacher)


def both(f, student):
    """Returns what `f` gives for the logits, and the gradient of its weighted sum, compiled."""

    def total(s):
        each = f(s)
        return jnp.sum(jnp.arange(1.0, 1.0 + len(s)) * each), each

    (_, each), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(student)
    return np.asarray(each), np.asarray(grad)


def plain(a, b, cfg):
    """Returns the divergence of log-distributions, as the formulas of the module stand."""
    if cfg.alpha == 0.0:
        return jnp.sum(jnp.exp(b) * (b - a), -1)
    if cfg.alpha == 1.0:
        return jnp.sum(jnp.exp(a) * (a - b), -1)
    m = jnp.log((1 - cfg.alpha) * jnp.exp(a) + cfg.alpha * jnp.exp(b))
    out = (1 - cfg.alpha) * jnp.sum(jnp.exp(a) * (a - m), -1)
    out += cfg.alpha * jnp.sum(jnp.exp(b) * (b - m), -1)
    return out / (cfg.alpha * (1 - cfg.alpha)) if cfg.scale == "continuous" else out


def plain_top_k(student, teacher, cfg):
    a, b = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    _, index = jax.lax.top_k(student if cfg.top_k_by == "student" else teacher, cfg.top_k)
    a, b = (jnp.take_along_axis(x, index, -1) for x in (a, b))
    if not cfg.tail:
        return plain(jax.nn.log_softmax(a), jax.nn.log_softmax(b), cfg)
    rest = [jnp.log1p(-jnp.sum(jnp.exp(x), -1, keepdims=True)) for x in (a, b)]
    return plain(*(jnp.concatenate(x, -1) for x in zip((a, b), rest, strict=True)), cfg)


@pytest.mark.parametrize("scale", ["reference", "continuous"])
@pytest.mark.parametrize("alpha", marks.heavy_but(ALWAYS, ALPHAS))
def test_full_and_its_gradient_are_those_of_the_formula(alpha, scale):
    cfg = Loss(alpha=alpha, scale=scale)
    student, teacher = logits(0)

    def wanted(s):
        return plain(jax.nn.log_softmax(s), jax.nn.log_softmax(teacher), cfg)

    def given(s):
        return divergences.full(s, teacher, None, cfg)

    (each, got), (wanted_each, want) = (both(f, student) for f in (given, wanted))
    np.testing.assert_allclose(each, wanted_each, rtol=3e-5, atol=1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.max(np.abs(want)))


@pytest.mark.parametrize("by", ["student", "teacher"])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_top_k_and_its_gradient_are_those_of_the_formula(alpha, tail, by):
    cfg = Loss(divergence="top_k", alpha=alpha, top_k=5, tail=tail, top_k_by=by)
    student, teacher = logits(1)

    def given(s):
        return divergences.top_k(s, teacher, None, cfg)

    each, got = both(given, student)
    wanted_each, want = both(lambda s: plain_top_k(s, teacher, cfg), student)
    np.testing.assert_allclose(each, wanted_each, rtol=3e-5, atol=1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.max(np.abs(want)))


def test_top_k_of_the_whole_vocabulary_is_the_full_divergence():
    student, teacher = logits(2)
    for alpha, tail in itertools.product((0.0, 0.5, 1.0), (True, False)):
        cfg = Loss(divergence="top_k", alpha=alpha, top_k=29, tail=tail)
        full = divergences.full(student, teacher, None, cfg)
        np.testing.assert_allclose(
            divergences.top_k(student, teacher, None, cfg), full, rtol=1e-5, atol=2e-6
        )


@pytest.mark.parametrize("scale", ["reference", "continuous"])
@pytest.mark.parametrize("alpha", marks.heavy_but(ALWAYS, ALPHAS))
def test_sampled_gradient_averaged_over_all_tokens_is_the_exact_one(alpha, scale):
    cfg = Loss(divergence="sampled", alpha=alpha, scale=scale)
    student, teacher = logits(3, (1, 24))
    tokens = jnp.arange(24)
    p = jax.nn.softmax(student)[0]

    def expected(s):
        every = jnp.broadcast_to(s, (24, 24)), jnp.broadcast_to(teacher, (24, 24))
        return jnp.sum(p * divergences.sampled(*every, tokens, cfg))

    got = jax.jit(jax.grad(expected))(student)
    want = jax.jit(jax.grad(lambda s: divergences.full(s, teacher, None, cfg)[0]))(student)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * np.max(np.abs(want)))


def test_sampled_at_alpha_1_is_the_references_estimator():
    student, teacher = logits(4)
    token = jnp.array([0, 3, 28, 7, 7, 1])
    a, b = (
        jnp.take_along_axis(jax.nn.log_softmax(x), token[:, None], -1)[:, 0]
        for x in (student, teacher)
    )
    got = divergences.sampled(student, teacher, token, Loss(alpha=1.0, scale="reference"))
    np.testing.assert_allclose(got, (a - b) * a, rtol=1e-5)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_continuous_scale_has_the_two_kls_as_its_limits(end):
    student, teacher = logits(5, spread=0.7)

    def value_and_grad(alpha):
        def total(s):
            each = divergences.full(s, teacher, None, Loss(alpha=alpha))
            return jnp.sum(each), each

        (_, each), grad = jax.value_and_grad(total, has_aux=True)(student)
        return np.asarray(each), np.asarray(grad)

    value, slope = value_and_grad(end)
    for distance, room in [(1e-3, 0.2), (1e-4, 0.05), (1e-6, 1e-3)]:
        each, grad = value_and_grad(abs(end - distance))
        np.testing.assert_allclose(each, value, rtol=room)
        assert np.max(np.abs(grad - slope)) < room * np.max(np.abs(slope))


def test_reference_scale_vanishes_at_both_ends():
    student, teacher = logits(6)
    for alpha in (1e-3, 1 - 1e-3):
        got = divergences.full(student, teacher, None, Loss(alpha=alpha, scale="reference"))
        kl = divergences.full(student, teacher, None, Loss(alpha=float(alpha > 0.5)))
        assert np.all(got < 0.01 * kl)


@pytest.mark.parametrize("alpha", marks.heavy_but(ALWAYS, ALPHAS))
def test_a_pointwise_clip_bounds_each_share_and_leaves_no_negative_divergence(alpha):
    student, teacher = logits(7, (200, 29), 3.0)
    clip = 0.02
    free = divergences.full(student, teacher, None, Loss(alpha=alpha))
    got = divergences.full(student, teacher, None, Loss(alpha=alpha, pointwise_clip=clip))
    assert np.all(got >= 0)
    assert np.all(got <= np.minimum(free, 29 * clip) + 1e-6)
    assert np.any(got < free - 0.1)


def test_reference_pointwise_clip_is_that_of_plain_kl_terms():
    student, teacher = logits(8)
    a, b = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    want = jnp.sum(jnp.minimum(jnp.exp(b) * (b - a), 0.05), -1)
    got = divergences.full(
        student, teacher, None, Loss(alpha=0.0, scale="reference", pointwise_clip=0.05)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.any(got < 0)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("scale", ["reference", "continuous"])
def test_clipped_gradients_are_finite_differences(alpha, scale):
    student, teacher = logits(9, (1, 11))
    cfg = Loss(alpha=alpha, scale=scale, pointwise_clip=0.1)
    with jax.enable_x64(True):
        s, t = jnp.asarray(student, jnp.float64), jnp.asarray(teacher, jnp.float64)
        direction = jax.random.normal(jax.random.key(1), s.shape, jnp.float64)

        def along(e):
            return divergences.full(s + e * direction, t, None, cfg)[0]

        slope = jnp.sum(jax.grad(lambda x: divergences.full(x, t, None, cfg)[0])(s) * direction)
        np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-5)


def test_a_token_clip_bounds_the_divergence_and_stops_its_gradient():
    student, teacher = logits(10)
    free = divergences.full(student, teacher, None, Loss())
    clip = float(jnp.median(free))
    cfg = Loss(token_clip=clip)
    np.testing.assert_allclose(
        divergences.full(student, teacher, None, cfg), jnp.minimum(free, clip)
    )
    grad = jax.grad(lambda s: divergences.full(s, teacher, None, cfg).sum())(student)
    assert np.all((np.abs(grad).max(-1) == 0) == (free > clip))


CONTRACTS = {
    f"{name}-{alpha}-{tail}": Loss(divergence=name, alpha=alpha, top_k=2, tail=tail)
    for name in divergences.DIVERGENCES
    for alpha in (0.0, 0.5, 1.0)
    for tail in (True, False)
    if tail or name == "top_k"
}


@pytest.mark.parametrize(
    "case", marks.heavy_but((f"{name}-0.5-True" for name in divergences.DIVERGENCES), CONTRACTS)
)
def test_every_divergence_keeps_the_contract(case):
    cfg = CONTRACTS[case]
    contracts.check_divergence(divergences.get(cfg.divergence), cfg)


def test_the_contract_refuses_a_divergence_that_underflows():
    def hellinger(student, teacher, token, cfg):
        del token, cfg
        s, t = jax.nn.softmax(student), jax.nn.softmax(teacher)
        return 1.0 - jnp.sum(jnp.sqrt(s * t), axis=-1)

    with pytest.raises(AssertionError):
        contracts.check_divergence(hellinger, Loss())


def test_an_unknown_divergence_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match=r"loss.divergence is 'topk': one of ") as raised:
        divergences.get("topk")
    listed = str(raised.value).partition("one of ")[2].split(", ")
    assert set(listed) == set(divergences.DIVERGENCES)
