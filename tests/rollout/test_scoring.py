"""Log-probabilities of given tokens: those of training and of transformers, whatever the batch."""

import jax
import marks
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.models.network import transformer
from sdjax.rollout.engine import scoring
from sdjax.training import loaded_model

LENGTHS = [(1, 1), (5, 1), (3, 40), (70, 2), (1, 33), (200, 7)]


@pytest.fixture(scope="module", params=marks.heavy_but(["olmo3"], ["llama", "qwen3", "olmo3"]))
def folder(request, tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("scored") / request.param, request.param)


@pytest.fixture(scope="module")
def opened(folder):
    source = config.Model(path=str(folder), compute_dtype="float32")
    model = loaded_model.open_model(source, config.Mesh(data=1))
    return model, model.stored_weights()


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(3)
    return [tuple(rng.integers(3, tiny.VOCABULARY, n).tolist() for n in pair) for pair in LENGTHS]


def expected(logits, context, continuation):
    """Returns log-probability and "is the largest" of each token of the continuation."""
    rows = np.asarray(jax.nn.log_softmax(logits, axis=-1))[len(context) - 1 : -1]
    assert len(rows) == len(continuation)
    own = rows[np.arange(len(rows)), continuation]
    return own, rows.argmax(-1) == continuation


@pytest.mark.heavy
def test_they_are_those_of_the_training_s_forward_pass(folder, opened, pairs):
    model, weights = opened
    _, graph, params = tiny.load(folder, remat="none")
    network = nnx.merge(graph, params)
    found = scoring.likelihoods(model.sampler, weights, pairs)
    for (context, continuation), one in zip(pairs, found, strict=True):
        tokens = np.array([[*context, *continuation]], np.int32)
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        hidden = transformer.hidden_states(network, tokens, positions, None)
        logits = transformer.logits(hidden, transformer.head_weight(network))[0]
        logprobs, largest = expected(logits, context, continuation)
        np.testing.assert_allclose(one.logprobs, logprobs, rtol=1e-4, atol=1e-4)
        assert one.greedy == largest.all()


@pytest.mark.heavy
def test_they_are_those_of_transformers(folder, opened, pairs):
    torch = pytest.importorskip("torch")
    reference, (model, weights) = tiny.torch_model(folder), opened
    found = scoring.likelihoods(model.sampler, weights, pairs)
    for (context, continuation), one in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([[*context, *continuation]])).logits[0].numpy()
        logprobs, largest = expected(logits, context, continuation)
        np.testing.assert_allclose(one.logprobs, logprobs, rtol=1e-4, atol=1e-4)
        assert one.greedy == largest.all()


def test_the_likeliest_tokens_are_greedy_and_others_are_not(opened, pairs):
    model, weights = opened
    context, best = pairs[1][0], []
    for _ in range(2):
        tried = [(context, [*best, token]) for token in range(tiny.VOCABULARY)]
        scored = scoring.likelihoods(model.sampler, weights, tried)
        best.append(int(np.argmax([one.logprobs[-1] for one in scored])))
        assert [one.greedy for one in scored].index(True) == best[-1]
        assert sum(one.greedy for one in scored) == 1
        total = sum(np.exp(one.logprobs[-1], dtype=np.float64) for one in scored)
        assert total == pytest.approx(1, abs=1e-5)


def test_logits_that_are_not_finite_give_no_score(opened, pairs):
    model, weights = opened
    broken = jax.tree.map(lambda x: x.at[0].set(np.nan) if x.ndim == 1 else x, weights)
    with pytest.raises(UserError, match=r"logits are not finite after a context of \d+ tokens"):
        scoring.likelihoods(model.sampler, broken, pairs)
