"""Compares every family with transformers in float32: logits, gradients, greedy decoding."""

from __future__ import annotations

from importlib.util import find_spec

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.models.files import tensors
from sdjax.models.network import transformer

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")

ROWS, TOKENS, NEW = 2, 24, 32


def some_tokens(vocabulary: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.integers(0, vocabulary, (ROWS, TOKENS)).astype(np.int32)


def torch_loss(model, tokens: np.ndarray):
    """Returns logits, and the gradients of the mean loss by name."""
    import torch

    ids = torch.tensor(tokens, dtype=torch.long)
    out = model(ids, labels=ids)
    out.loss.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return out.logits.detach().numpy(), tiny.per_expert(grads)


def torch_greedy(model, tokens: np.ndarray, length: int) -> list[int]:
    import torch

    ids = torch.tensor(tokens[None, :length], dtype=torch.long)
    with torch.no_grad():
        for _ in range(NEW):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, length:].tolist()


def our_loss(graphdef, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(TOKENS), tokens.shape)

    def loss(params):
        model = nnx.merge(graphdef, params)
        hidden = transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))
        logits = transformer.logits(hidden, transformer.head_weight(model))
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)
        return -chosen.mean(), logits

    return jax.grad(loss, has_aux=True)(params)


def our_greedy(graphdef, cfg, params, tokens, length):
    weights = transformer.decode_weights(nnx.merge(graphdef, params))
    hidden, cache = transformer.prefill(weights, cfg, tokens, length)
    cache = tiny.with_room(cache, cfg, NEW)

    def step(carry, _):
        hidden, cache = carry
        token = transformer.logits(hidden, weights.head).argmax(-1).astype(jnp.int32)
        return transformer.decode_step(weights, cfg, token, cache), token

    return jax.lax.scan(step, (hidden, cache), length=NEW)[1].T


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_compared_with_transformers(family):
    assert family_cases.of(family).parity


@pytest.mark.heavy
def test_longrope_is_that_of_transformers_on_both_sides_of_the_original_context(tmp_path):
    folder = tiny.model_folder(tmp_path / "model", "phi3", **family_cases.LONG)
    reference = tiny.torch_model(folder)
    for rows, context in ((8, 8), (TOKENS, 512)):
        cfg, graphdef, params = tiny.load(folder, context=context, remat="none")
        tokens = some_tokens(cfg.vocab_size)[:, :rows]
        wanted, _ = torch_loss(reference, tokens)
        model = nnx.merge(graphdef, params)
        positions = jnp.broadcast_to(jnp.arange(rows), tokens.shape)
        hidden = transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))
        logits = transformer.logits(hidden, transformer.head_weight(model))
        assert np.abs(logits - wanted).max() <= 2e-4


ALWAYS = ("olmo3",)  # windows, full layers and two rotary tables


def rare(family, number):
    """Returns the marks of a family's cases: of six, .ci/run compares the first two."""
    mark = pytest.mark.slow if number > 1 else pytest.mark.heavy
    return [] if family in ALWAYS and number == 0 else [mark]


@pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(family, case, marks=rare(family, i))
        for family, cases in family_cases.CASES.items()
        for i, case in enumerate(cases.parity)
    ],
)
def test_logits_gradients_and_greedy_tokens_are_those_of_transformers(family, case, tmp_path):
    folder = tiny.model_folder(tmp_path / "model", family, **family_cases.of(family).parity[case])
    reference = tiny.torch_model(folder)
    cfg, graphdef, params = tiny.load(folder)
    tokens = some_tokens(cfg.vocab_size)

    wanted, wanted_grads = torch_loss(reference, tokens)
    grads, logits = jax.jit(our_loss, static_argnums=0)(graphdef, params, tokens)
    assert np.abs(logits - wanted).max() <= 2e-4
    leaves = dict(nnx.to_flat_state(grads))
    for tensor in tensors.of(cfg):
        leaf = np.asarray(leaves[tensor.path].get_value())
        ours = tensor.stored(leaf[tensor.place] if tensor.place else leaf)
        theirs = wanted_grads[tensor.name][tensor.rows]
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs), tensor.name

    lengths = (TOKENS, TOKENS - 5)
    ours = jax.jit(our_greedy, static_argnums=(0, 1))(
        graphdef, cfg, params, tokens, jnp.array(lengths)
    )
    for row, length in enumerate(lengths):
        assert ours[row].tolist() == torch_greedy(reference, tokens[row], length)
