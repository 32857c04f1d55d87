"""Each rule of a target against its equation in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Loss, Target
from sdjax.errors import UserError
from sdjax.learner.chunked_head import Context, Contexts, HeadSpec, Tokens, token_outputs
from sdjax.objectives import divergences, targets

NAMES = ("student", "solution", "unrelated", "wrong", "reference", "plain")
TOKENS, VOCABULARY = 7, 31


def given(seed=0):
    """Returns float32 logits of every context, [TOKENS, VOCABULARY] each."""
    rng = np.random.default_rng(seed)
    shared = 3 * rng.standard_normal((TOKENS, VOCABULARY))
    return {name: (shared + rng.standard_normal(shared.shape)).astype(np.float32) for name in NAMES}


def logp(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def pointwise_information(p, s):
    d = p["solution"] - p["reference"]
    d = d - d.mean(-1, keepdims=True)
    return p["plain"] + s * 10 * np.tanh(d / 10)


def disagreement(p, s):
    student, solution = np.exp(p["student"]), np.exp(p["solution"])
    middle = np.log((student + solution) / 2)
    apart = (student * (p["student"] - middle) + solution * (p["solution"] - middle)).sum(-1) / 2
    a = 2 * 0.15 * s * (1 / (1 + np.exp(-50 * apart)) - 0.5)
    return (1 - a)[:, None] * p["solution"] + a[:, None] * p["student"]


EQUATIONS = {
    "context": lambda p, s: p["solution"],
    "weights": lambda p, s: 1.5 * p["solution"] - 0.7 * p["wrong"] + 0.2 * p["student"],
    "pointwise_information": pointwise_information,
    "success_minus_failure": lambda p, s: p["plain"] + s * (p["solution"] - p["wrong"]),
    "plain_contrast": lambda p, s: p["plain"] + s * (p["solution"] - p["unrelated"]),
    "disagreement": disagreement,
    "away": lambda p, s: (1 + s) * p["student"] - s * p["solution"],
    "trust_region": lambda p, s: (1 - s) * p["student"] + s * p["solution"],
}
WEIGHTS = {"solution": 1.5, "wrong": -0.7, "student": 0.2}


def section(rule, **fields):
    weights = WEIGHTS if rule == "weights" else {}
    return Target(rule=rule, weights=weights, **fields)


def test_every_rule_of_the_table_has_an_equation_here():
    assert EQUATIONS.keys() == targets.TARGETS.keys()


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("rule", EQUATIONS)
def test_a_rule_is_its_equation(rule, strength):
    logits = given()
    cfg = section(rule, strength=strength)
    made = targets.make({name: jnp.asarray(x) for name, x in logits.items()}, cfg)
    wanted = EQUATIONS[rule]({name: logp(x) for name, x in logits.items()}, strength)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(logp(made), logp(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", EQUATIONS)
def test_a_rule_reads_the_student_and_its_own_contexts_alone(rule):
    cfg = section(rule)
    named = {"student", *targets.contexts(cfg)}
    assert "student" not in targets.contexts(cfg)
    logits = {name: jnp.asarray(x) for name, x in given().items()}
    whole = targets.make(logits, cfg)
    part = targets.make({name: logits[name] for name in named}, cfg)
    np.testing.assert_array_equal(whole, part)


@pytest.mark.parametrize("rule", ["weights", "success_minus_failure", "plain_contrast", "away"])
def test_the_floor_keeps_negative_weights_from_unlikely_entries(rule):
    logits, floor = given(), 0.05
    made = logp(targets.make(logits, section(rule, support=floor)))
    p = {name: logp(x) for name, x in logits.items()}
    positive = {
        "weights": {"solution": 1.5 / 1.7, "student": 0.2 / 1.7},
        "success_minus_failure": {"plain": 0.5, "solution": 0.5},
        "plain_contrast": {"plain": 0.5, "solution": 0.5},
        "away": {"student": 1.0},
    }[rule]
    base = logp(sum(weight * p[name] for name, weight in positive.items()))
    unlikely = base < base.max(-1, keepdims=True) + np.log(floor)
    assert 0.2 < unlikely.mean() < 0.95
    wanted = logp(np.where(unlikely, base, EQUATIONS[rule](p, 1.0)))
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)
    free = logp(targets.make(logits, section(rule)))
    assert np.abs(made - free).max() > 0.1


def test_the_solution_alone_is_the_very_array():
    logits = {name: jnp.asarray(x) for name, x in given().items()}
    assert targets.make(logits, Target()) is logits["solution"]


def outputs(logits, target, student):
    """Returns the outputs of the head, whose hidden states pick a row of a head of logits."""
    pick = jnp.eye(TOKENS)[None]
    teachers = {n: Context(hidden=pick, head=x) for n, x in logits.items() if n != "student"}
    contexts = Contexts(student=Context(hidden=pick, head=student), teachers=teachers)
    tokens = Tokens(token=jnp.zeros((1, TOKENS), jnp.int32), mask=jnp.ones((1, TOKENS), bool))
    spec = HeadSpec(loss=Loss(), temperature=1.0, target=target)
    return token_outputs(contexts, tokens, spec)


@pytest.mark.parametrize("rule", ["weights", "disagreement", "away", "trust_region"])
def test_no_gradient_goes_through_the_target(rule):
    logits = {name: jnp.asarray(x) for name, x in given().items()}
    cfg = section(rule, strength=0.4)
    constant = targets.make(logits, cfg)

    def total(student, logits):
        return jnp.sum(outputs(logits, cfg, student).divergence)

    def with_constant(student):
        token = jnp.zeros(TOKENS, jnp.int32)
        return jnp.sum(divergences.DIVERGENCES["full"](student, constant, token, Loss()))

    student = logits["student"]
    of_student, of_teachers = jax.grad(total, (0, 1))(student, logits)
    wanted = jax.grad(with_constant)(student)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(of_student, wanted, rtol=1e-5, atol=1e-6)
    assert all(np.all(x == 0) for x in of_teachers.values())


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(UserError, match=r"target.rule is 'typo': one of context, weights, .*away"):
        targets.contexts(Target(rule="typo"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rule": "weights"}, "target.weights"),
        ({"rule": "weights", "weights": {"student": 1.0}}, "target.weights"),
        ({"rule": "weights", "weights": {"solution": 0.0}}, "target.weights"),
        ({"weights": {"solution": 1.0}}, "target.weights"),
        ({"context": "student"}, "target.context"),
        ({"support": 1.5}, "target.support"),
        ({"strength": float("nan")}, "target.strength"),
    ],
    ids=str,
)
def test_a_target_that_cannot_be_is_an_error_of_its_field(fields, field):
    with pytest.raises(UserError, match=field):
        Target(**fields)


def test_targets_of_equal_values_share_a_compiled_program():
    one, other = section("weights"), section("weights")
    assert hash(one) == hash(other) and one == other
    orders = {"solution": 1.0, "wrong": -0.5}, {"wrong": -0.5, "solution": 1.0}
    assert len({Target(rule="weights", weights=weights) for weights in orders}) == 1
    assert replace(one, strength=0.5) != one
