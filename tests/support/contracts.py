"""Checks what every divergence and every token weighting must keep, also those of a user."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config.sections.target import SOLUTION
from sdjax.learner.chunked_head import (
    Context,
    Contexts,
    HeadSpec,
    Tokens,
    token_outputs,
)
from sdjax.objectives import divergences
from sdjax.objectives.token_weights import TokenStats

REAL = Path(__file__).parents[1] / "golden" / "smollm2_logits.npz"
TEMPERATURE = 0.7
EXTREME = {
    "student": [[1e4, -1e4, 0.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]],
    "teacher": [[-1e4, 1e4, 0.0, 1.0, 0.0], [9e3, -9e3, 1.0, 2.0, 3.0]],
    "token": [1, 4],
}


@functools.cache
def real():
    """Returns logits of SmolLM2 after temperature, [6, V] each, and tokens (smollm2_logits.py)."""
    with np.load(REAL) as z:
        logits = [jnp.asarray(z[who], jnp.float32) / TEMPERATURE for who in ("student", "teacher")]
        return *logits, jnp.asarray(z["token"])


def check_divergence(f, cfg):
    """Asserts the contract of a divergence `f` under a `Loss` section.

    It returns float32 of the tokens' shape. Values and gradients are finite at logits of a real
    model and at extreme ones. A student equal to its teacher gets no gradient; another student
    gets one. The teacher never does.
    """
    for student, teacher, token in (real(), extreme()):
        if f is divergences.sampled and cfg.alpha == 0.0 and student.shape[-1] == 5:
            continue  # its coefficient is T/S itself, e^20000 here
        value, grad = value_and_gradient(f, cfg, student, teacher, token)
        assert value.shape == token.shape and value.dtype == jnp.float32
        assert np.all(np.isfinite(value)), value
        assert np.all(np.isfinite(grad)), f"{np.sum(~np.isfinite(grad).all(-1))} tokens"
    student, teacher, token = real()
    assert np.any(value_and_gradient(f, cfg, student, teacher, token)[1] != 0)
    equal = value_and_gradient(f, cfg, student, student, token)[1]
    np.testing.assert_allclose(equal, 0.0, atol=1e-6)
    check_teacher(f, cfg)


def extreme():
    """Returns logits of five tokens that a trained model may reach, and tokens."""
    arrays = {name: jnp.asarray(x) for name, x in EXTREME.items()}
    return arrays["student"], arrays["teacher"], arrays["token"]


def value_and_gradient(f, cfg, student, teacher, token):
    """Returns the divergence of each token, and its gradient by the student's logits."""
    (_, value), grad = compiled(f, cfg)(student, teacher, token)
    return value, np.asarray(grad)


@functools.cache
def compiled(f, cfg):
    """Returns the jitted function behind `value_and_gradient`, which compiles once per shape."""

    def total(student, teacher, token):
        each = f(student, teacher, token, cfg)
        return jnp.sum(each), each

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def check_teacher(f, cfg):
    """Asserts that the learner passes a gradient of `f` to the student and none to the teacher."""
    keys = jax.random.split(jax.random.key(11), 2)
    student, teacher = (2 * jax.random.normal(k, (6, 29)) for k in keys)
    pick = jnp.eye(6)[None]

    def total(s, t):
        contexts = Contexts(
            student=Context(hidden=pick, head=s), teachers={SOLUTION: Context(hidden=pick, head=t)}
        )
        tokens = Tokens(token=jnp.zeros((1, 6), jnp.int32), mask=jnp.ones((1, 6), bool))
        spec = HeadSpec(loss=replace(cfg, divergence="checked"), temperature=1.0)
        return jnp.sum(token_outputs(contexts, tokens, spec).divergence)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(divergences.DIVERGENCES, "checked", f)
        of_student, of_teacher = jax.grad(total, (0, 1))(student, teacher)
    assert np.any(of_student != 0) and np.all(of_teacher == 0)


def check_token_weights(f, cfg):
    """Asserts the contract of a token weighting `f` under a `Loss` section.

    It returns finite float32 of the tokens' shape, also for an empty completion, and gives each
    token the same weight whatever the other tokens are.
    """
    n = 6
    stats = TokenStats(
        token=jnp.arange(n),
        index=jnp.arange(n),
        length=jnp.full(n, n),
        student_logprob=jnp.linspace(-30.0, 0.0, n),
        teacher_logprob=jnp.linspace(0.0, -30.0, n),
        student_entropy=jnp.linspace(0.0, 10.0, n),
        teacher_entropy=jnp.linspace(10.0, 0.0, n),
        pass_rate=jnp.linspace(0.0, 1.0, n),
        epistemic=jnp.arange(n) % 2 == 0,
        correct=jnp.arange(n) % 3 == 0,
    )
    for given in (stats, replace(stats, length=jnp.zeros(n, jnp.int32))):
        whole = f(jax.tree.map(lambda x: jnp.stack([x, x]), given), cfg)
        assert whole.shape == (2, n) and whole.dtype == jnp.float32
        assert np.all(np.isfinite(whole)) and np.array_equal(whole[0], whole[1])
        alone = [f(jax.tree.map(lambda x, i=i: x[i], given), cfg) for i in range(n)]
        np.testing.assert_allclose(whole[0], alone, rtol=1e-6)
