"""Updates whose teacher reads several contexts: the same on any mesh, in any rows."""

import functools
import sys
from dataclasses import replace

import jax
import learning
import numpy as np
import other_process
import pytest
from learning import PLAIN

from sdjax import config
from sdjax.teacher import contexts

KINDS = {
    "sdpo": {},
    "halves": {"target": {"rule": "weights", "weights": {"solution": 0.5, "unrelated": 0.5}}},
    "contrast": {"target": {"rule": "success_minus_failure", "support": 1e-3}},
    "blend": {
        "target": {"rule": "weights", "weights": {"solution": 1.5, "plain": -0.5}},
        "loss": {"distillation": 0.5, "learn_from": "pivotal"},
        "policy": {"credit": "contrast"},
    },
    "means": {
        "loss": {"distillation": 0.5, "learn_from": "before_drift"},
        "policy": {"credit": "contrast_means"},
    },
    "pivotal": {"loss": {"learn_from": "pivotal_over_mean", "pivotal_gap": 0.05}},
    "credit": {"loss": {"distillation": 0.0}, "policy": {"credit": "signed_gap"}},
    "unlikely": {"loss": {"distillation": 0.0}, "policy": {"credit": "unlikely"}},
}
SEEDS = {"solution": 1, "unrelated": 1, "wrong": 2, "reference": 3, "plain": 4}
"""unrelated has the reprompts of solution."""
ROW_TOKENS = 160


def training(kind, row_tokens=0):
    sections = {"loss": {}, "policy": {}, "target": {}} | KINDS[kind]
    return learning.train_config(
        optim=PLAIN | {"row_tokens": row_tokens},
        teacher={"dtype": "float32"},
        **sections,
    )


def batch_of(cfg):
    """Returns the random batch with random reprompts in each context that the loss reads."""
    groups, rng = learning.groups(), np.random.default_rng(2)
    read = {name: learning.reprompts(groups, SEEDS[name]) for name in contexts.used(cfg)}
    marked = [rng.random(len(c.tokens)) < 0.2 for g in groups for c in g.completions]
    return learning.packed(cfg, groups, read, marked)


@functools.cache
def updated(kind, row_tokens=0, mesh=(1, 1, 1)):
    """Returns the metrics and -1000 times the gradient of one update."""
    cfg = training(kind, row_tokens)
    learner = learning.Learner(cfg, learning.make_mesh(*mesh))
    before = learner.params()
    metrics = learner.update(batch_of(cfg))
    return metrics, jax.tree.map(lambda a, b: a - b, learner.params(), before)


def assert_same(one, other):
    assert one[0].keys() == other[0].keys() and one[0]["optim/grad_norm"] > 1e-4
    for name in one[0].keys() - {"update/padding"}:
        np.testing.assert_allclose(other[0][name], one[0][name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        # Absolute part: float32 rounding of a change 1000 times the gradient, beside values near 1.
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@pytest.mark.heavy
def test_halves_of_two_equal_contexts_are_one_context():
    assert_same(updated("sdpo"), updated("halves"))


@pytest.mark.heavy
def test_a_second_context_changes_the_update():
    one, other = (jax.tree.leaves(updated(kind)[1]) for kind in ("sdpo", "blend"))
    assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) > 1e-3


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind",
    [
        "blend",
        *(pytest.param(k, marks=pytest.mark.heavy) for k in ("means", "pivotal")),
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("halves", "contrast", "credit")),
    ],
)
def test_packed_rows_of_several_contexts_give_the_update_of_rows_of_one(kind):
    alone, packed = updated(kind), updated(kind, ROW_TOKENS)
    assert packed[0]["update/padding"] < alone[0]["update/padding"]
    assert_same(alone, packed)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kinds", [["contrast"], pytest.param(["blend", "means", "pivotal"], marks=pytest.mark.slow)]
)
def test_several_contexts_on_a_mesh_give_the_update_of_one_device(kinds):
    other_process.on_eight_devices(f"import test_learner_contexts as test; test.compare({kinds})")


def compare(kinds):
    """Runs in the subprocess: packed rows on data x fsdp x tensor, beside one device."""
    assert jax.device_count() == 8
    for kind in kinds:
        print(kind, file=sys.stderr)  # shown where they differ
        assert_same(updated(kind), updated(kind, ROW_TOKENS, (2, 2, 2)))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["credit", "unlikely"])
def test_a_credit_without_distillation_has_the_teacher_that_it_needs(kind):
    cfg = training(kind)
    batch = batch_of(cfg)
    assert list(batch.rows.contexts) == (["solution"] if kind == "credit" else [])
    assert kind == "credit" or batch.samples.learned.all()
    metrics = updated(kind)[0]
    assert metrics["optim/grad_norm"] > 1e-4
    assert "loss/distillation" not in metrics and np.isfinite(metrics["loss/policy"])


@pytest.mark.heavy
def test_adapters_learn_from_several_contexts():
    cfg = training("contrast")
    adapted = replace(learning.CFG, lora=config.Lora(rank=2))
    learner = learning.Learner(cfg, learning.make_mesh(), adapted)
    before = learner.params()
    metrics = learner.update(batch_of(cfg))
    assert metrics["optim/grad_norm"] > 1e-4 and metrics["optim/skipped"] == 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), learner.params(), before)
    assert max(jax.tree.leaves(moved)) > 0


def weights_of(cfg, learner, batch):
    """Returns float64[B], the weight of each distilled completion of arXiv:2606.23104."""
    records = (learner.record.student_logprob, learner.record.teacher_logprob)
    student, teacher = (learning.by_completion(batch, x) for x in records)
    out = []
    for s, t, distilled in zip(student, teacher, batch.samples.distilled, strict=True):
        if not distilled:
            continue
        r = np.minimum(s.astype(np.float64) - t, 2.5)
        pivotal = r >= cfg.loss.pivotal_gap
        out.append(np.exp(r[pivotal].mean()) if pivotal.any() else 1.0)
    return np.array(out)


@pytest.mark.heavy
@pytest.mark.parametrize("microbatch", [4, 8])
def test_an_update_is_divided_by_the_mean_weight_of_its_completions(microbatch):
    cfg = training("pivotal")
    # Under the bound of 10, the choice without the mean has the same weights.
    plain = replace(cfg, loss=replace(cfg.loss, learn_from="pivotal"))
    found = []
    for one in (plain, cfg):
        one = replace(one, optim=replace(one.optim, microbatch=microbatch))
        learner, batch = learning.Learner(one, learning.make_mesh()), batch_of(one)
        before = learner.params()
        metrics = learner.update(batch)
        moved = jax.tree.map(lambda a, b: a - b, learner.params(), before)
        found.append((metrics, jax.tree.leaves(moved)))
    weights = weights_of(cfg, learner, batch)
    assert 1 < weights.mean() < weights.max() < 10 and len(set(weights)) > 5
    (whole, its_gradient), (divided, gradient) = found
    for name in ("loss/distillation", "loss/total", "optim/grad_norm"):
        assert divided[name] == pytest.approx(whole[name] / weights.mean(), rel=1e-5), name
    for a, b in zip(its_gradient, gradient, strict=True):
        np.testing.assert_allclose(b, a / weights.mean(), rtol=1e-4, atol=1e-5 * np.abs(a).max())
