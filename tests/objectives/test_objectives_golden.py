"""The objectives give the numbers of the papers' code, which tests/golden/README.md describes."""

import functools
import json

import jax
import jax.numpy as jnp
import marks
import numpy as np
import pytest
from paths import GOLDEN

from sdjax.config import Loss, Policy
from sdjax.objectives import divergences, policy_gradient, token_weights
from sdjax.objectives.divergences import log_prob


@functools.cache
def golden(name):
    """Returns the arrays of one golden file."""
    with np.load(GOLDEN / name) as z:
        return {k: z[k] for k in z.files}


def listed(name, key):
    return json.loads(str(golden(name)[key]))


DIVERGENCE_FIELDS = ("alpha", "distillation_topk", "distillation_add_tail")


def divergence_of(c):
    """Returns the section that asks for a reference config's divergence."""
    kind = "top_k" if c["distillation_topk"] else "full"
    return Loss(
        divergence=kind if c["full_logit_distillation"] else "sampled",
        alpha=c["alpha"],
        scale="reference",
        top_k=c["distillation_topk"] or 1,
        tail=c["distillation_add_tail"],
    )


def per_token(student, teacher, x, c):
    """Returns what the reference calls the loss matrix, float32[N]; logits are [N, V]."""
    cfg = divergence_of(c)
    out = divergences.get(cfg.divergence)(student, teacher, x["tokens"], cfg)
    logprob = log_prob(student, x["tokens"])
    old = jax.lax.stop_gradient(logprob) if c["on_policy"] else x["old_log_probs"]
    if c["is_clip"] is not None:
        out = out * policy_gradient.importance_ratio(logprob, old, c["is_clip"])
    return out * x["rollout_is_weights"] if c["use_rollout_is_weights"] else out


@functools.cache
def scenarios():
    """Returns {name: (arrays, temperature)} of sdpo_loss.npz."""
    z = golden("sdpo_loss.npz")
    return {
        name: (
            {k.split("/", 1)[1]: v for k, v in z.items() if k.startswith(f"{name}/")},
            about["temperature"],
        )
        for name, about in listed("sdpo_loss.npz", "scenarios_json").items()
    }


def stacked(key, fill=0.0):
    """Returns one array of all scenarios' tokens, so that everything compiles once.

    Vocabularies are filled up with entries of probability 0.
    """
    arrays = [x[key].reshape(-1, *x[key].shape[2:]) for x, _ in scenarios().values()]
    if arrays[0].ndim == 1:
        return np.concatenate(arrays)
    width = max(a.shape[1] for a in arrays)
    return np.concatenate(
        [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill) for a in arrays]
    )


def split(flat, name):
    """Returns the part of a stacked array [..., N, ...axis 0] that is one scenario's, [B, T, V]."""
    start = 0
    for other, (x, _) in scenarios().items():
        rows, length, width = x["student_logits"].shape
        if other == name:
            part = flat[start : start + rows * length].reshape(rows, length, *flat.shape[1:])
            return part[..., :width] if flat.ndim > 1 else part
        start += rows * length
    raise KeyError(name)


def inputs():
    temperature = np.concatenate(
        [np.full(x["tokens"].size, t, np.float32) for x, t in scenarios().values()]
    )[:, None]
    rest = {k: jnp.asarray(stacked(k)) for k in ("tokens", "old_log_probs", "rollout_is_weights")}
    logits = [jnp.asarray(stacked(f"{who}_logits", -1e9)) for who in ("student", "teacher")]
    return *logits, jnp.asarray(temperature), rest


@functools.cache
def configs():
    return listed("sdpo_loss.npz", "configs_json")


@functools.cache
def loss_matrices():
    """Returns float32[n_cfg, N]."""
    student, teacher, temperature, rest = inputs()

    student, teacher = student / temperature, teacher / temperature

    def every(student, teacher, rest):
        return jnp.stack([per_token(student, teacher, rest, c) for c in configs()])

    return np.asarray(jax.jit(every)(student, teacher, rest))


@functools.cache
def with_gradients():
    return [int(i) for i in golden("sdpo_loss.npz")["grad_config_index"]]


@functools.cache
def gradients():
    """Returns float32[6, N, V]: of every token's loss by its own logits."""
    student, teacher, temperature, rest = inputs()

    def total(s, c):
        return jnp.sum(per_token(s / temperature, teacher / temperature, rest, c))

    # Not compiled as one: products rounded in between cancel where both models are equal.
    return [np.asarray(jax.grad(total)(student, configs()[i])) for i in with_gradients()]


def weights(x, kind, average_over, counted=None, constant=1.0):
    """Returns what each token weighs in the loss, float32[B, T]."""
    length = x["response_mask"].sum(-1)
    counted = np.asarray(x["self_distillation_mask"] > 0) if counted is None else counted
    each = token_weights.aggregation_weights(
        jnp.asarray(length),
        jnp.asarray(counted),
        aggregation=kind,
        average_over=average_over,
        constant=constant,
    )
    return np.asarray(each)[:, None] * x["response_mask"]


def within(got, f32, f64, rtol=0.0, atol=0.0):
    """Asserts the README's tolerance: its plain form, or its general rule where that is wider."""
    spread = np.max(np.abs(f32 - f64))
    room = np.maximum(rtol * np.abs(f64) + atol, 4 * spread + 1e-5 * np.abs(f64) + 1e-6)
    excess = np.abs(np.asarray(got) - f64) - room
    assert np.all(excess <= 0), f"off by {np.max(excess):.3g} beyond {np.max(room):.3g}"


SCENARIOS = [
    "base",
    "masked_rows",
    "saturated",
    "topk_eq_V",
    "identical",
    "all_rows_off",
    "temperature",
    "contradicting",
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_divergences_give_the_references_loss_matrix_and_losses(name):
    x = scenarios()[name][0]
    rtol, atol = (1e-4, 1e-5) if name == "saturated" else (2e-5, 4e-6)
    each = np.stack([split(m, name) for m in loss_matrices()])
    valid = np.broadcast_to(x["response_mask"] > 0, each.shape)
    f32, f64 = x["per_token_f32"], x["per_token_f64"]
    within(np.where(valid, each, 0), np.where(valid, f32, 0), np.where(valid, f64, 0), rtol, atol)
    per = np.sum(each * weights(x, "sequence", "all"), axis=(1, 2))
    within(per, x["loss_perseq_f32"], x["loss_perseq_f64"], rtol, atol)
    batch = np.sum(each * weights(x, "token", "distilled"), axis=(1, 2))
    within(batch, x["loss_batch_f32"], x["loss_batch_f64"], rtol, atol)
    if name == "identical":
        assert np.max(np.abs(per)) < 5e-7


@pytest.mark.heavy
@pytest.mark.parametrize("name", SCENARIOS)
def test_divergences_give_the_references_gradients(name):
    x = scenarios()[name][0]
    each = [split(g, name) for g in gradients()]
    # The file holds these in ascending order of config, not in that of grad_config_index.
    ascending = np.argsort(with_gradients())
    pairs = [
        (each[i] * weights(x, "sequence", "all")[..., None], want)
        for i, want in zip(ascending, x["grad_perseq_f64"], strict=True)
    ]
    pairs.append((each[0] * weights(x, "token", "distilled")[..., None], x["grad_batch_f64"]))
    for got, want in pairs:
        assert np.max(np.abs(got - want)) <= 1e-5 * np.max(np.abs(want)) + 1e-8


@pytest.mark.parametrize("name", SCENARIOS)
def test_other_aggregations_give_the_references_losses(name):
    x = scenarios()[name][0]
    distilled = (x["self_distillation_mask"] > 0) & (x["response_mask"].sum(-1) > 0)
    each = [split(loss_matrices()[i], name) for i in with_gradients()]
    for mode, kind, constant in [
        ("seq-mean-token-mean", "sequence", 1.0),
        ("seq-mean-token-sum", "constant", 1.0),
        # Not a mean over sequences in the reference, whatever its name.
        (
            "seq-mean-token-sum-norm",
            "constant",
            x["response_mask"].shape[1] / max(distilled.sum(), 1),
        ),
    ]:
        w = weights(x, kind, "distilled", distilled, constant)
        got = np.array([np.sum(w * e) for e in each])
        f32, f64 = (x[f"loss_batch_{mode}_{kind}"] for kind in ("f32", "f64"))
        if not distilled.any():
            # 0/0 in the reference's two means over sequences; 0 here.
            assert np.all(got == 0)
            assert np.all(np.isnan(f64) | (f64 == 0))
            continue
        within(got, f32, f64, 2e-5, 4e-6)


ADVANTAGE_CASES = ["binary_4x4", "interleaved", "group_of_one", "real_rewards"]


@pytest.mark.parametrize("name", ADVANTAGE_CASES)
@pytest.mark.parametrize("kind", ["mean", "mean_std"])
def test_advantages_are_the_references(name, kind):
    z = {k.rsplit("/", 1)[1]: v for k, v in golden("grpo_loss.npz").items() if f"adv/{name}/" in k}
    rewards = (z["token_level_rewards"] * z["response_mask"]).sum(-1)
    got = policy_gradient.advantages(rewards, z["group"], Policy(advantage=kind))
    want = z["adv_std_f64" if kind == "mean_std" else "adv_nostd_f64"]
    np.testing.assert_allclose(got[:, None] * z["response_mask"], want, rtol=1e-5, atol=1e-6)


GRPO_SCENARIOS = ["small_ratio", "wide_ratio", "far", "binary_adv", "empty_row"]


def grpo_case(name):
    start = f"loss/{name}/"
    return {k[len(start) :]: v for k, v in golden("grpo_loss.npz").items() if k.startswith(start)}


def grpo_per_token(logprob, x, c):
    cfg = Policy(clip_low=c["clip_low"], clip_high=c["clip_high"], dual_clip=c["clip_ratio_c"])
    old = jax.lax.stop_gradient(logprob) if c["on_policy"] else x["old_log_prob"]
    sample = jnp.zeros(logprob.shape, jnp.int32)
    loss = policy_gradient.policy_loss(
        logprob, old, x["advantages"], cfg, sample=sample, num_samples=1
    )
    return loss * x["rollout_is_weights"] if c["use_rollout_is_weights"] else loss


def grpo_weights(x, c, one_row_a_microbatch):
    """Returns what each token weighs, float32[B, T], in the terms of our aggregation."""
    mask = x["response_mask"]
    rows = np.ones(len(mask), bool)
    present = mask.sum(-1) > 0
    width = c["loss_scale_factor"] or mask.shape[1]
    mode = c["loss_agg_mode"]
    if one_row_a_microbatch:
        kind = "sequence" if mode in ("token-mean", "seq-mean-token-mean") else "constant"
        constant = width if mode == "seq-mean-token-sum-norm" else 1.0
        return weights(x, kind, "all", rows, constant)
    kind, constant = {
        "token-mean": ("token", 1.0),
        "seq-mean-token-mean": ("sequence", 1.0),
        "seq-mean-token-sum": ("constant", 1.0),
        "seq-mean-token-sum-norm": ("constant", width / max(present.sum(), 1)),
    }[mode]
    return weights(x, kind, "distilled", present, constant)


# Each scenario has a shape of its own, and so compiles all anew.
@pytest.mark.parametrize("name", marks.heavy_but(["far"], GRPO_SCENARIOS))
@pytest.mark.parametrize("path", ["batch", "perseq"])
def test_policy_losses_and_gradients_are_the_references(name, path):
    x = grpo_case(name)
    logprob = jnp.asarray(x["log_prob"])
    for i, c in enumerate(listed("grpo_loss.npz", "loss_configs_json")):
        w = grpo_weights(x, c, path == "perseq")
        each = grpo_per_token(logprob, x, c)
        valid = x["response_mask"] > 0
        want = np.where(valid, x["per_token_f64"][i], 0)
        np.testing.assert_allclose(np.where(valid, each, 0), want, rtol=1e-5, atol=1e-6)
        loss, grad = x[f"loss_{path}_f64"][i], x[f"grad_{path}_f64"][i]
        if np.isnan(loss):
            continue  # 0/0 in the reference for a row without tokens
        got = jnp.sum(w * each)
        np.testing.assert_allclose(got, loss, rtol=1e-5, atol=1e-6)
        got = jax.grad(lambda lp, w=w, c=c: jnp.sum(w * grpo_per_token(lp, x, c)))(logprob)
        np.testing.assert_allclose(got, grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GRPO_SCENARIOS)
def test_clip_fractions_are_the_references(name):
    x = grpo_case(name)
    valid = x["response_mask"] > 0
    for i, c in enumerate(listed("grpo_loss.npz", "loss_configs_json")):
        cfg = Policy(clip_low=c["clip_low"], clip_high=c["clip_high"], dual_clip=c["clip_ratio_c"])
        old = x["log_prob"] if c["on_policy"] else x["old_log_prob"]
        log_ratio = policy_gradient.token_log_ratio(jnp.asarray(x["log_prob"]), old)
        clip, dual = policy_gradient.was_clipped(log_ratio, x["advantages"], cfg)
        got = [np.mean(np.asarray(m)[valid]) for m in (clip, -log_ratio, dual)]
        np.testing.assert_allclose(got, x["metrics_batch_f64"][i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("upper", [2.0, 1.2])
@pytest.mark.parametrize("case", [0, 1, 2])
def test_sampler_weights_are_the_references(case, upper):
    start = f"tis/case{case}/"
    x = {k[len(start) :]: v for k, v in golden("grpo_loss.npz").items() if k.startswith(start)}
    got = policy_gradient.importance_ratio(x["old_log_prob"], x["rollout_log_prob"], upper)
    want = x[f"weights_token_{upper}_plain_f64"]
    np.testing.assert_allclose(got * x["response_mask"], want, rtol=1e-5, atol=1e-6)
