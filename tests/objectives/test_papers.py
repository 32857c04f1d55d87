"""Each row of docs/objectives.md is its paper's loss, computed from the formula in float64."""

import re
from dataclasses import replace

import jax
import learning
import marks
import numpy as np
import pytest
from flax import nnx
from learning import PLAIN
from paths import ROOT

from sdjax.models.network import transformer
from sdjax.records import TeacherPrompt

PAGE = ROOT / "docs" / "objectives.md"


def sections(paper):
    """Returns the values that the row of a paper names, by section."""
    (row,) = re.findall(rf"^\| [^|]*arXiv:{paper}[^|]*\|([^|]+)\|$", PAGE.read_text(), re.MULTILINE)
    out = {"loss": {"distillation": 0.0}, "policy": {}}
    for section, field, value in re.findall(r"`(loss|policy)\.(\w+)=([^`]+)`", row):
        out[section][field] = {"None": None}.get(value, value.strip('"'))
        if re.fullmatch(r"[\d.e-]+", value):
            out[section][field] = float(value)
    return out


def clipped(ratio, advantage, low, high):
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def advantages(rewards, std):
    out = rewards - rewards.mean(axis=1, keepdims=True)
    return out / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6) if std else out


def grpo(ratios, rewards, lengths):
    """arXiv:2402.03300 equation 3, without the KL term: means over tokens, then completions."""
    a = advantages(rewards, std=True).ravel()
    return -np.mean([clipped(r, x, 0.2, 0.2).mean() for r, x in zip(ratios, a, strict=True)])


def dr_grpo(ratios, rewards, lengths):
    """arXiv:2503.20783 section 3.1: sums over tokens, divided by a constant."""
    a = advantages(rewards, std=False).ravel()
    sums = [clipped(r, x, 0.2, 0.2).sum() / 32 for r, x in zip(ratios, a, strict=True)]
    return -np.mean(sums)


def dapo(ratios, rewards, lengths):
    """arXiv:2503.14476 equations 8 and 13: the mean over all tokens, rewards with a penalty."""
    into = np.clip((lengths.reshape(rewards.shape) - (32 - 8)) / 8, 0, 1)
    a = advantages(rewards - into, std=True).ravel()
    terms = [clipped(r, x, 0.2, 0.28) for r, x in zip(ratios, a, strict=True)]
    return -np.mean(np.concatenate(terms))


def gspo(ratios, rewards, lengths):
    """arXiv:2507.18071 equations 5 and 7: one geometric mean of ratios per completion."""
    a = advantages(rewards, std=True).ravel()
    s = np.array([np.exp(np.log(r).mean()) for r in ratios])
    return -np.mean(clipped(s, a, 3e-4, 4e-4))


MORE = {
    "2503.20783": {"loss": {"constant_length": 32}},
    "2503.14476": {"policy": {"overlong_buffer": 8}},
}
PAPERS = {"2402.03300": grpo, "2503.20783": dr_grpo, "2503.14476": dapo, "2507.18071": gspo}


@pytest.mark.heavy
@pytest.mark.parametrize("paper", marks.heavy_but(["2402.03300"], list(PAPERS)))
def test_the_fields_of_a_row_give_the_loss_of_its_paper(paper):
    given = sections(paper)
    for name, fields in MORE.get(paper, {}).items():
        given[name] |= fields
    cfg = learning.train_config(optim=PLAIN | {"minibatches": 2}, **given)
    assert cfg.loss.sampler_clip is None and cfg.policy.dual_clip is None
    learner = learning.Learner(cfg, learning.make_mesh())
    groups = learning.groups()
    batch = learning.pack(cfg, groups)
    with jax.set_mesh(learner.mesh):
        scored = jax.device_get(learner.score(learner.state.params, batch))
    # Old log-probabilities on both sides of every clip.
    size = 0.002 if paper == "2507.18071" else 0.8
    drawn = np.random.default_rng(3).normal(0, size, scored.shape)
    old = (scored - np.clip(drawn, -1.8, 1.8)).astype(np.float32)
    batch = replace(batch, rows=replace(batch.rows, old_logprobs=old))
    metrics = learner.update(batch)
    new = learning.by_completion(batch, learner.record.student_logprob)
    before = learning.by_completion(batch, old)
    lengths = np.array([len(c.tokens) for g in groups for c in g.completions])
    # A completion without a row has advantage 0, and its ratios do not matter.
    ratios = [
        np.ones(n) if x is None else np.exp(x.astype(np.float64) - y)
        for x, y, n in zip(new, before, lengths, strict=True)
    ]
    every = np.concatenate(ratios)
    assert paper == "2507.18071" or (every.max() > 3.5 and every.min() < 0.3)
    rewards = np.array([[grade.reward for grade in g.grades] for g in groups])
    assert 0 < metrics["policy/clipped"] < 1 and metrics["policy/dual_clipped"] == 0
    wanted = PAPERS[paper](ratios, rewards, lengths)
    assert metrics["loss/policy"] == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    assert metrics["loss/total"] == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def log_probs(learner, params, texts):
    """Returns float64[texts, length, V]: log-probabilities of the next token at every place."""
    length = max(map(len, texts))
    tokens = np.array([np.pad(text, (0, length - len(text))) for text in texts])
    places = np.broadcast_to(np.arange(length), tokens.shape)
    model = nnx.merge(learner.graphdef, params)
    hidden = transformer.hidden_states(model, tokens, places, np.ones_like(tokens))
    z = np.asarray(transformer.logits(hidden, transformer.head_weight(model)), np.float64)
    z = (z - z.max(-1, keepdims=True)) / learner.cfg.rollout.temperature
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.heavy
def test_the_plain_context_adds_the_kl_term_of_grpo():
    """arXiv:2402.03300 equation 3 with beta, on policy; the KL of equation 4 is exact here."""
    beta = 0.1
    given = sections("2402.03300")
    given["loss"] |= {"distillation": beta / (1 + beta), "alpha": 1.0}
    given |= {"target": {"context": "plain"}, "teacher": {"dtype": "float32"}}
    cfg = learning.train_config(optim=PLAIN, **given)
    learner = learning.Learner(cfg, learning.make_mesh())
    reference = learner.params()
    groups = learning.groups()
    prompts = [
        [
            TeacherPrompt(
                tokens=g.prompt, demonstration=None, feedback_used=False, teaches_anyway=True
            )
        ]
        * len(g.completions)
        for g in groups
    ]
    marked = [np.zeros(len(c.tokens), bool) for g in groups for c in g.completions]
    batch = learning.packed(cfg, groups, {"plain": prompts}, marked)
    assert learner.update(batch)["loss/distillation"] == pytest.approx(0, abs=1e-7)
    params = learner.params()
    metrics = learner.update(batch)

    pairs = [(g.prompt, c.tokens) for g in groups for c in g.completions]
    texts = [np.concatenate(pair) for pair in pairs]
    new, old = (log_probs(learner, p, texts) for p in (params, reference))
    kl = (np.exp(new) * (new - old)).sum(-1)
    of_completion = [
        row[len(prompt) - 1 : len(prompt) - 1 + len(answer)].mean()
        for row, (prompt, answer) in zip(kl, pairs, strict=True)
    ]
    rewards = np.array([[grade.reward for grade in g.grades] for g in groups])
    wanted = grpo([np.ones(len(answer)) for _, answer in pairs], rewards, None)
    wanted += beta * np.mean(of_completion)
    assert np.mean(of_completion) > 0.01
    assert (1 + beta) * metrics["loss/total"] == pytest.approx(wanted, rel=1e-4)
