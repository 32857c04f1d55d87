"""The update: its result depends on the data alone, not on how the work is cut."""

import functools
import sys
from dataclasses import replace

import jax
import learning
import marks
import numpy as np
import other_process
import pytest
from learning import PLAIN

from sdjax import config
from sdjax.errors import UserError

METHODS = {
    "sdpo": {},
    "top_k": {"divergence": "top_k", "top_k": 20},
    "grpo": {"distillation": 0.0},
    "blend": {"distillation": 0.4, "aggregation": "token"},
}


@functools.cache
def gradient(method="sdpo", mesh=(1, 1, 1), microbatch=8, chunk=64, remat="full", tie=True):
    """Returns (metrics, -1000 times the gradient) of one update on the random batch."""
    cfg = learning.train_config(
        optim=PLAIN | {"microbatch": microbatch},
        loss={"chunk_tokens": chunk} | METHODS[method],
        teacher={"dtype": "float32"},
        model={"remat": remat},
    )
    model = replace(learning.CFG, remat=remat, tie_embeddings=tie)
    learner = learning.Learner(cfg, learning.make_mesh(*mesh), model)
    before = learner.params()
    metrics = learner.update(learning.pack(cfg))
    return metrics, jax.tree.map(lambda a, b: a - b, learner.params(), before)


def assert_same(one, two, rtol=1e-5):
    for name in one[0].keys() - {"update/padding"}:
        np.testing.assert_allclose(two[0][name], one[0][name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1]), strict=True):
        # Absolute part: float32 rounding of a change 1000 times the gradient, beside values near 1.
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-5 * np.abs(a).max())


# The blend has both losses.
@pytest.mark.parametrize(
    ("method", "microbatches"),
    [
        # The test of packing has a short form for all of them.
        pytest.param("sdpo", (1, 2), marks=pytest.mark.heavy),
        pytest.param("blend", (2,), marks=pytest.mark.heavy),
        *(pytest.param(m, (1, 2), marks=pytest.mark.slow) for m in METHODS if m != "sdpo"),
    ],
)
def test_metrics_and_gradients_are_equal_for_any_microbatch(method, microbatches):
    whole = gradient(method, microbatch=8)
    assert whole[0]["optim/grad_norm"] > 1e-4
    for microbatch in microbatches:
        assert_same(gradient(method, microbatch=microbatch), whole)


@pytest.mark.heavy
@pytest.mark.parametrize(("remat", "tie"), [("none", True), ("dots", True), ("dots", False)])
def test_gradients_summed_in_place_are_those_of_the_whole(remat, tie):
    assert_same(gradient(microbatch=2, tie=tie), gradient(microbatch=2, remat=remat, tie=tie))


@pytest.mark.heavy
def test_the_gradient_taken_in_the_forward_pass_is_the_differentiated_one(monkeypatch):
    forward = gradient("blend")
    learning.programs.cache_clear()
    monkeypatch.setattr(learning.objective.Objective, "needs_whole_completions", True)
    assert_same(forward, gradient.__wrapped__("blend"))
    learning.programs.cache_clear()  # of what was compiled under the patch


@pytest.mark.heavy
def test_metrics_and_gradients_are_equal_for_any_chunk():
    assert_same(gradient(chunk=8), gradient(chunk=10_000))


@pytest.mark.heavy
def test_a_live_teacher_without_a_reprompt_pushes_nowhere():
    cfg = learning.train_config(teacher={"kind": "live"})
    groups = learning.groups()
    same = [
        [learning.TeacherPrompt(tokens=g.prompt, demonstration=0, feedback_used=False)] * 4
        for g in groups
    ]
    epistemic = [np.zeros(len(c.tokens), bool) for g in groups for c in g.completions]
    batch = learning.packed(cfg, groups, {"solution": same}, epistemic)
    metrics = learning.Learner(cfg, learning.make_mesh()).update(batch)
    assert abs(metrics["loss/total"]) < 1e-6
    assert metrics["optim/grad_norm"] < 1e-5
    assert metrics["distill/top1_agreement"] == 1.0


@pytest.mark.heavy
def test_an_update_without_any_demonstration_has_no_loss_and_no_gradient():
    cfg = learning.train_config()
    groups = learning.groups(prompts=4)
    plain = [[replace(r, demonstration=None) for r in rs] for rs in learning.reprompts(groups)]
    epistemic = [np.zeros(len(c.tokens), bool) for g in groups for c in g.completions]
    batch = learning.packed(cfg, groups, {"solution": plain}, epistemic)
    metrics = learning.Learner(cfg, learning.make_mesh()).update(batch)
    assert metrics["loss/total"] == 0 and metrics["optim/grad_norm"] == 0


def off_policy(batch, old_logprobs):
    """Returns the batch with these old log-probabilities; all such batches share a program."""
    return replace(batch, rows=replace(batch.rows, old_logprobs=old_logprobs))


@pytest.mark.heavy
def test_scores_are_the_logprobs_of_the_update_by_which_ratios_are_clipped_and_weighted():
    cfg = learning.train_config(loss={"distillation": 0.0})
    learner = learning.Learner(cfg, learning.make_mesh())
    batch = learning.pack(cfg)
    rows = batch.rows
    drawn = np.random.default_rng(3).normal(0.0, 0.7, rows.token.shape).astype(np.float32)
    with jax.set_mesh(learner.mesh):
        scored = jax.device_get(learner.score(learner.state.params, batch))
    old = scored + drawn
    metrics = learner.update(off_policy(batch, old))
    real = np.asarray(rows.sample) >= 0
    np.testing.assert_allclose(scored[real], learner.record.student_logprob[real], atol=1e-5)
    assert np.all(scored[real] < 0)
    ratio = np.exp(learner.record.student_logprob - old)[real]
    advantage = np.asarray(batch.samples.advantage)[rows.sample][real]
    low, high, dual = 1 - cfg.policy.clip_low, 1 + cfg.policy.clip_high, cfg.policy.dual_clip
    clipped = np.where(advantage > 0, ratio > high, ratio < low)
    assert 0.1 < clipped.mean() < 0.9
    np.testing.assert_allclose(metrics["policy/clipped"], clipped.mean(), rtol=1e-5)
    bad = (ratio > dual) & (advantage < 0)
    assert bad.any()
    np.testing.assert_allclose(metrics["policy/dual_clipped"], bad.mean(), rtol=1e-5)
    weight = np.minimum(np.exp(old - rows.sampler_logprobs), cfg.loss.sampler_clip)[real]
    share = weight.mean() ** 2 / np.mean(weight**2)
    np.testing.assert_allclose(metrics["sampler/weight_mean"], weight.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["sampler/weight_max"], weight.max(), rtol=1e-4)
    np.testing.assert_allclose(metrics["sampler/effective_share"], share, rtol=1e-4)


@pytest.mark.heavy
def test_a_distillation_reports_the_kl_to_the_teacher_whatever_its_divergence():
    found = {}
    for name, loss in {"kl": {"alpha": 1.0}, "jsd": {"alpha": 0.5}}.items():
        cfg = learning.train_config(loss=loss)
        found[name] = learning.Learner(cfg, learning.make_mesh()).update(learning.pack(cfg))
    kl = found["kl"]["distill/divergence"]
    assert kl > 0.01
    for metrics in found.values():
        np.testing.assert_allclose(metrics["distill/reverse_kl"], kl, rtol=1e-4)
        assert not any(name.startswith("policy/") for name in metrics)


@pytest.mark.parametrize("distillation", marks.heavy_but([0.0], [1.0, 0.0]))
def test_epistemic_tokens_are_compared_with_the_others_token_by_token(distillation):
    cfg = learning.train_config(loss={"distillation": distillation})
    learner, batch = learning.Learner(cfg, learning.make_mesh()), learning.pack(cfg)
    batch = off_policy(batch, batch.rows.sampler_logprobs)
    metrics = learning.of_step([learner.update(batch)])
    real = np.asarray(batch.rows.sample) >= 0
    marked, record = batch.rows.epistemic[real], jax.tree.map(lambda x: x[real], learner.record)
    wanted = {"student_entropy": record.student_entropy}
    if distillation:
        wanted["teacher_entropy"] = record.teacher_entropy
        wanted["push"] = record.teacher_logprob - record.student_logprob
    assert 0.05 < marked.mean() < 0.5
    np.testing.assert_allclose(metrics["epistemic/token_share"], marked.mean(), rtol=1e-5)
    for name, values in wanted.items():
        for end, where in (("", marked), ("_others", ~marked)):
            found = metrics.pop(f"epistemic/{name}{end}")
            np.testing.assert_allclose(found, values[where].mean(), rtol=1e-4, err_msg=name)
    assert [name for name in metrics if name.startswith("epistemic/")] == ["epistemic/token_share"]


@pytest.mark.parametrize(
    ("others", "left"), [(1.0, {"epistemic/student_entropy_others": 2.0}), (0.0, {})]
)
def test_means_over_no_tokens_are_left_out(others, left):
    update = {"epistemic/token_share": 0.0, "epistemic/student_entropy_sum": 0.0}
    update |= {"epistemic/others_share": others, "student/entropy": 2.0, "sampler/abs_gap_max": 1.0}
    found = learning.of_step([update] * 2)
    assert found == left | {
        "epistemic/token_share": 0.0,
        "student/entropy": 2.0,
        "sampler/abs_gap_max": 1.0,
    }


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "rate"), marks.heavy_but([("ema", 0.25)], [("ema", 0.25), ("initial", 0.0)])
)
def test_the_ema_teacher_moves_once_a_step_and_the_initial_one_never(kind, rate):
    cfg = learning.train_config(
        teacher={"kind": kind, "ema_rate": rate, "dtype": "float32"}, optim={"lr": 0.01}
    )
    learner = learning.Learner(cfg, learning.make_mesh())
    start = jax.device_get(learner.state.teacher_params)
    learner.update(learning.pack(cfg))
    after = jax.device_get(learner.state.teacher_params)
    jax.tree.map(np.testing.assert_array_equal, after, start)
    with jax.set_mesh(learner.mesh):
        learner.state = learner.after(learner.state)
    expected = jax.tree.map(lambda t, p: (1 - rate) * t + rate * p, start, learner.params())
    moved = jax.device_get(learner.state.teacher_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), moved, expected)
    assert int(learner.state.step) == 1


@pytest.mark.heavy
def test_a_refreshed_teacher_is_the_student_of_the_last_step_that_was_due():
    cfg = learning.train_config(
        teacher={"kind": "refreshed", "every": 2, "dtype": "float32"}, optim={"lr": 0.01}
    )
    learner = learning.Learner(cfg, learning.make_mesh())
    known = learner.params()
    for step in range(1, 5):
        learner.update(learning.pack(cfg))
        with jax.set_mesh(learner.mesh):
            learner.state = learner.after(learner.state)
        if step % 2 == 0:
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), learner.params(), known)
            assert max(jax.tree.leaves(moved)) > 0
            known = learner.params()
        teacher = jax.device_get(learner.state.teacher_params)
        jax.tree.map(np.testing.assert_array_equal, teacher, known)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["initial", pytest.param("trust_region", marks=pytest.mark.slow)])
def test_a_teacher_kept_on_the_host_gives_the_same_update_and_stays_there(kind):
    found = {}
    for location in ("device", "host"):
        cfg = learning.train_config(teacher={"kind": kind, "location": location})
        learner = learning.Learner(cfg, learning.make_mesh())
        batch = learning.pack(cfg)
        metrics = [learner.update(batch) for _ in range(2)]
        with jax.set_mesh(learner.mesh):
            learner.state = learner.after(learner.state)
        memory = {x.sharding.memory_kind for x in jax.tree.leaves(learner.state.teacher_params)}
        assert memory == {{"device": "device", "host": "pinned_host"}[location]}
        assert {x.sharding.memory_kind for x in jax.tree.leaves(learner.state.params)} == {"device"}
        found[location] = (metrics, learner.params())
    assert found["host"][0] == found["device"][0]
    jax.tree.map(np.testing.assert_array_equal, found["host"][1], found["device"][1])


@pytest.mark.parametrize("kind", ["ema", "live"])
def test_a_teacher_that_changes_is_not_kept_on_the_host(kind):
    with pytest.raises(config.UserError, match=rf"teacher.location is 'host': .* {kind!r}"):
        config.Teacher(kind=kind, location="host")


def test_a_non_finite_gradient_leaves_the_state_as_it_was():
    cfg = learning.train_config(loss={"distillation": 0.0})
    learner = learning.Learner(cfg, learning.make_mesh())
    batch = learning.pack(cfg)
    batch = off_policy(batch, batch.rows.sampler_logprobs)
    advantage = np.array(batch.samples.advantage)
    advantage[5] = np.nan
    bad = learning.replace(batch, samples=learning.replace(batch.samples, advantage=advantage))
    before = learner.params()
    metrics = learner.update(bad)
    assert metrics["optim/skipped"] == 1.0
    # Nobody knows what was clipped.
    assert np.isnan([metrics["policy/clipped"], metrics["policy/dual_clipped"]]).all()
    jax.tree.map(np.testing.assert_array_equal, learner.params(), before)
    assert learner.update(batch)["optim/skipped"] == 0.0


def test_the_largest_of_some_values_is_nan_where_one_is():
    for values in ([0.5, np.nan, 0.25], [np.nan, 1.0], [2.0, np.nan]):
        assert np.isnan(learning.objective._largest(np.float32(values)))
    assert learning.objective._largest(np.float32([0.5, np.inf, -1.0])) == np.inf


def test_the_rate_warms_up_by_steps_not_updates():
    rates = {"first": [0.25, 0.5, 0.75, 1.0, 1.0], "zero": [0.0, 0.25, 0.5, 0.75, 1.0]}
    for start, expected in rates.items():
        cfg = learning.train_config(optim={"lr": 1.0, "warmup_steps": 4, "warmup_from": start})
        got = [float(learning.adamw.learning_rate(np.int32(i), cfg.optim)) for i in range(5)]
        np.testing.assert_allclose(got, expected)


def test_the_rate_falls_to_nothing_between_two_steps():
    cfg = config.Optim(lr=1.0, warmup_steps=2, decay=(3, 7))
    got = [float(learning.adamw.learning_rate(np.int32(i), cfg)) for i in range(9)]
    np.testing.assert_allclose(got, [0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    with pytest.raises(UserError, match=r"optim\.decay"):
        config.Optim(decay=(5, 5))


@pytest.mark.heavy
def test_eight_updates_of_ragged_batches_compile_once_per_shape_bucket():
    learning.programs.cache_clear()
    cfg = learning.train_config(loss={"distillation": 0.0})
    learner = learning.Learner(cfg, learning.make_mesh())
    shapes = set()
    for seed in range(8):
        batch = learning.pack(cfg, learning.groups(seed=seed))
        shapes.add(tuple(x.shape for x in jax.tree.leaves(batch)))
        learner.update(batch)
    assert learner.step._cache_size() == len(shapes) <= 3


MESHES = {"sdpo": [(2, 2, 2)], "grpo": [(1, 4, 2)]}
EVERY = {method: [(8, 1, 1), (2, 2, 2), (1, 4, 2)] for method in METHODS}


@pytest.mark.heavy
@pytest.mark.parametrize("which", ["MESHES", pytest.param("EVERY", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_one_device_on_any_mesh(which):
    other_process.on_eight_devices(
        f"import test_learner; test_learner.compare_with_one_device(test_learner.{which})"
    )


def compare_with_one_device(meshes):
    """Runs in the subprocess: asserts that a mesh changes neither metrics nor gradients."""
    assert jax.device_count() == 8
    for method, shapes in meshes.items():
        for mesh in shapes:
            print(method, mesh, file=sys.stderr)  # shown where they differ
            assert_same(gradient(method), gradient(method, mesh))
