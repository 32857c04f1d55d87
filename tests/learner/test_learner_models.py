"""Updates whose teacher is another model: against whole logits in NumPy, in any rows, anywhere."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import learning
import numpy as np
import other_process
import pytest
from flax import nnx
from learning import CFG, PLAIN

from sdjax import config
from sdjax.errors import UserError
from sdjax.learner import batch as batches
from sdjax.models.network import lora, transformer
from sdjax.models.network.model_config import LayerKind

# Another family, wider and deeper, with more rows, whose head is not the embedding as CFG's is.
OTHER = replace(
    CFG,
    family="qwen3",
    vocab_size=288,
    num_layers=3,
    embed=48,
    mlp=96,
    num_heads=6,
    layers=(LayerKind(),) * 3,
    qk_norm="head",
    tie_embeddings=False,
)
ONE = (("", OTHER),)
SECOND = replace(CFG, num_layers=1, embed=64, layers=(LayerKind(),))
BOTH = (("a", OTHER), ("b", SECOND))
TEMPERATURE = 0.7
RULES = {
    "solution": {},
    "plain": {"context": "plain"},
    "mix": {"rule": "weights", "weights": {"solution": 1.5, "plain": -0.75, "student": 0.25}},
}
ADAPTED = replace(CFG, lora=config.Lora(rank=2))


def training(rule, row_tokens=0, location="device"):
    return learning.train_config(
        optim=PLAIN | {"row_tokens": row_tokens},
        teacher={"kind": "model", "path": "unread", "location": location},
        target=RULES[rule],
        loss={"alpha": 1.0, "sampler_clip": None, "average_over": "distilled"},
    )


def read_by(cfg, groups):
    """Returns what the teacher reads in each context of the target."""
    reprompts = learning.reprompts(groups)
    plain = [
        [replace(r, tokens=g.prompt) for r in of] for g, of in zip(groups, reprompts, strict=True)
    ]
    known = {"solution": reprompts, "plain": plain}
    names = cfg.target.named or ("solution",)
    return {name: known[name] for name in names if name != "student"}


def batch_of(cfg):
    groups = learning.groups()
    marked = [np.zeros(len(c.tokens), bool) for g in groups for c in g.completions]
    return learning.packed(cfg, groups, read_by(cfg, groups), marked)


@functools.cache
def updated(rule, row_tokens=0, mesh=(1, 1, 1), location="device"):
    """Returns the metrics of an update, -1000 times its gradient, and the learner after it."""
    cfg = training(rule, row_tokens, location)
    learner = learning.Learner(cfg, learning.make_mesh(*mesh), CFG, ONE)
    before = learner.params()
    metrics = learner.update(batch_of(cfg))
    return metrics, jax.tree.map(lambda a, b: a - b, learner.params(), before), learner


def assert_same(one, other):
    assert one[0].keys() == other[0].keys() and one[0]["optim/grad_norm"] > 1e-4
    for name in one[0].keys() - {"update/padding"}:
        np.testing.assert_allclose(other[0][name], one[0][name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        # Absolute part: float32 rounding of a change 1000 times the gradient, beside values near 1.
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def log_probs(graphdef, params, prompt, completion):
    """Returns float64 log-probabilities [T, 256] of each token, from a row of one sequence."""
    model = nnx.merge(graphdef, params)
    tokens = np.concatenate([prompt, completion])[None]
    positions = np.arange(tokens.shape[1])[None]
    hidden = np.asarray(transformer.hidden_states(model, tokens, positions, None), np.float64)
    head = np.asarray(transformer.head_weight(model), np.float64)
    logits = (hidden[0, len(prompt) - 1 : -1] @ head)[:, : CFG.vocab_size] / TEMPERATURE
    return normal(logits)


def normal(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def by_whole_logits(rule):
    """Returns divergence, loss and the teacher's log-probabilities from both models' logits."""
    cfg = training(rule)
    learner = learning.Learner(cfg, learning.make_mesh(), CFG, ONE)
    groups, other = learning.groups(), learner.state.teacher_params[""]
    read = read_by(cfg, groups)
    per_token, teacher = [], {}
    weights = RULES[rule].get("weights", {rule: 1.0})
    for i in range(4, 16):  # the first group is not distilled
        group, place = groups[i // 4], i % 4
        completion = group.completions[place].tokens
        said = {"student": log_probs(learner.graphdef, learner.params(), group.prompt, completion)}
        for name, reprompts in read.items():
            prompt = reprompts[i // 4][place].tokens
            said[name] = log_probs(other.graphdef, other.params, prompt, completion)
        target = normal(sum(weight * said[name] for name, weight in weights.items()))
        p = np.exp(said["student"])
        per_token.append((p * (said["student"] - target)).sum(-1))
        teacher[i] = target[np.arange(len(completion)), completion]
    return np.concatenate(per_token).mean(), np.mean([x.mean() for x in per_token]), teacher


@pytest.mark.heavy
@pytest.mark.parametrize("rule", RULES)
def test_the_divergence_is_that_of_both_models_whole_logits(rule):
    divergence, loss, teacher = by_whole_logits(rule)
    metrics, _, learner = updated(rule)
    assert divergence > 0.1
    np.testing.assert_allclose(metrics["distill/divergence"], divergence, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/total"], loss, rtol=1e-5)
    said = learning.by_completion(batch_of(learner.cfg), learner.record.teacher_logprob)
    for i, wanted in teacher.items():
        np.testing.assert_allclose(said[i], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
def test_packed_rows_give_the_update_of_rows_of_one():
    assert_same(updated("mix"), updated("mix", 160))


@pytest.mark.heavy
def test_beside_the_student_on_a_mesh_it_gives_the_update_of_one_device():
    other_process.on_eight_devices("import test_learner_models as test; test.compare()")


def compare():
    """Runs in the subprocess: packed rows on data x fsdp x tensor, beside one device."""
    assert jax.device_count() == 8
    split = updated("mix", 160, (2, 2, 2))
    teacher = split[2].state.teacher_params[""].params["layers"]["gate"].get_value()
    assert teacher.addressable_shards[0].data.size == teacher.size // 4
    assert_same(updated("mix"), split)


@pytest.mark.heavy
def test_its_weights_on_the_host_give_the_same_update_and_stay_there():
    metrics, change, learner = updated("solution", location="host")
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(learner.state.teacher_params)}
    assert kinds == {"pinned_host"}
    assert metrics == updated("solution")[0]
    jax.tree.map(np.testing.assert_array_equal, change, updated("solution")[1])


@pytest.mark.heavy
def test_adapters_that_add_nothing_yet_are_taught_as_the_model_without_them():
    cfg = training("mix")
    adapted = learning.Learner(cfg, learning.make_mesh(), ADAPTED, ONE)
    whole = learning.Learner(cfg, learning.make_mesh(), CFG, ONE)
    base = jax.tree.map(jnp.array, adapted.state.frozen)
    whole.state = replace(whole.state, params=base)
    adapted.state = replace(adapted.state, params=lora.scaled(adapted.state.params, 0.0))
    one, other = whole.update(batch_of(cfg)), adapted.update(batch_of(cfg))
    for name in ("distill/divergence", "loss/total", "distill/teacher_entropy"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5)
    assert other["optim/grad_norm"] > 1e-4


@pytest.mark.heavy
def test_its_weights_never_change():
    learner = updated("mix")[2]
    fresh = learning.Learner(learner.cfg, learner.mesh, CFG, ONE).state.teacher_params
    jax.tree.map(np.testing.assert_array_equal, learner.state.teacher_params, fresh)


@pytest.mark.heavy
def test_each_completion_is_taught_by_the_model_that_its_row_names():
    """The subject of the groups is a, b, a and b: each has the teacher of a run of its own."""
    one = training("plain", 160)
    models = {"a": "unread", "b": "unread"}
    teacher = replace(one.teacher, path="", models=models, route="subject")
    cfg = replace(one, teacher=teacher)
    learner = learning.Learner(cfg, learning.make_mesh(), CFG, BOTH)
    batch = batch_of(cfg)
    metrics = learner.update(batch)
    said = learning.by_completion(batch, learner.record.teacher_logprob)
    other = learner.state.teacher_params
    for i in range(4, 16):
        group = learning.groups()[i // 4]
        model = other["ab"[i // 4 % 2]]
        completion = group.completions[i % 4].tokens
        wanted = log_probs(model.graphdef, model.params, group.prompt, completion)
        wanted = wanted[np.arange(len(completion)), completion]
        np.testing.assert_allclose(said[i], wanted, rtol=1e-5, atol=1e-5)
    assert metrics["optim/grad_norm"] > 1e-4


def test_a_row_that_names_no_model_is_named():
    teacher = config.Teacher(kind="model", models={"a": "x", "c": "y"}, route="subject")
    with pytest.raises(UserError, match=r"teacher.route is 'subject': the row 1 has .* 'b' there"):
        batches.routes(learning.groups(), teacher)
