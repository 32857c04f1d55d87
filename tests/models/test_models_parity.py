"""Every family against transformers' own model in float32: logits, gradients, greedy decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.models.files import tensors
from sdjax.models.network import transformer

torch = pytest.importorskip("torch")
# Its threads spin while they wait for each other, which ruins tiny products on few cores.
torch.set_num_threads(1)

ROWS, TOKENS, NEW = 2, 24, 32
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 8.0,
    "beta_slow": 0.5,
}
YARN_4 = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 24}
SLIDING, FULL = "sliding_attention", "full_attention"


TIED = {"tie_word_embeddings": True, "vocab_size": 263}
ONE_KV_HEAD = {"num_key_value_heads": 1, "head_dim": 24}


def qwen_cases(bias: dict) -> dict[str, dict]:
    window = {"use_sliding_window": True, "sliding_window": 5}
    return {
        "grouped_untied_window_in_deep_layers_theta": {
            "max_window_layers": 1,
            "rope_parameters": {"rope_theta": 5_000.0},
            **window,
        },
        "tied_odd_vocabulary_one_kv_head_wide_heads_linear_theta": {
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
            "rope_theta": 5_000.0,
            **TIED,
            **ONE_KV_HEAD,
            **bias,
        },
        "window_everywhere_yarn": {
            "layer_types": [SLIDING, SLIDING],
            "rope_scaling": YARN_4,
            **window,
        },
        "all_kv_heads_llama3_eps": {
            "num_key_value_heads": 4,
            "rope_parameters": LLAMA3,
            "rms_norm_eps": 1e-3,
        },
    }


# Each feature of a family is in one case; several share one, as a case is mostly compilation.
CASES = {
    "llama": {
        "grouped_untied_theta": {"rope_theta": 500_000.0},
        "yarn_eps": {"rope_parameters": YARN, "rms_norm_eps": 1e-3},
        "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear_theta": {
            "attention_bias": True,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "rope_theta": 900.0,
            **TIED,
            **ONE_KV_HEAD,
        },
        "all_kv_heads_llama3": {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
    },
    "qwen2": qwen_cases({}),
    "qwen3": qwen_cases({"attention_bias": True}),
    "olmo2": {
        "grouped_untied_theta": {"rope_theta": 500_000.0},
        "yarn_eps": {"rope_scaling": YARN_4, "rms_norm_eps": 1e-3},
        "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear": {
            "attention_bias": True,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            **TIED,
            **ONE_KV_HEAD,
        },
        "all_kv_heads_llama3": {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
    },
    "olmo3": {
        "window_and_full_yarn": {
            "layer_types": [SLIDING, FULL],
            "sliding_window": 5,
            "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 2e3}},
        },
        "types_by_depth_yarn_4": {
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "rope_theta": 500_000.0,
            "rope_scaling": {**YARN_4, "rope_type": "yarn", "attention_factor": 1.3},
        },
        "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear_in_windows": {
            "attention_bias": True,
            "sliding_window": 4,
            "rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}},
            **TIED,
            **ONE_KV_HEAD,
        },
        "all_kv_heads_llama3": {
            "num_key_value_heads": 4,
            "layer_types": [FULL, FULL],
            "rope_parameters": {FULL: LLAMA3},
        },
    },
}


def some_tokens(vocabulary: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.integers(0, vocabulary, (ROWS, TOKENS)).astype(np.int32)


def torch_loss(model, tokens: np.ndarray):
    """Returns logits, and the gradients of the mean loss by name."""
    ids = torch.tensor(tokens, dtype=torch.long)
    out = model(ids, labels=ids)
    out.loss.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return out.logits.detach().numpy(), grads


def torch_greedy(model, tokens: np.ndarray, length: int) -> list[int]:
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


@pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(family, case, marks=[pytest.mark.heavy] * (i > 0))
        for family, cases in CASES.items()
        for i, case in enumerate(cases)
    ],
)
def test_logits_gradients_and_greedy_tokens_are_those_of_transformers(family, case, tmp_path):
    folder = tiny.model_folder(tmp_path / "model", family, **CASES[family][case])
    reference = tiny.torch_model(folder)
    cfg, graphdef, params = tiny.load(folder)
    tokens = some_tokens(cfg.vocab_size)

    wanted, wanted_grads = torch_loss(reference, tokens)
    grads, logits = jax.jit(our_loss, static_argnums=0)(graphdef, params, tokens)
    assert np.abs(logits - wanted).max() <= 2e-4
    leaves = dict(nnx.to_flat_state(grads))
    for tensor in tensors.of(cfg):
        leaf = np.asarray(leaves[tensor.path].get_value())
        ours = tensor.stored(leaf if tensor.layer is None else leaf[tensor.layer])
        theirs = wanted_grads[tensor.name]
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs), tensor.name

    lengths = (TOKENS, TOKENS - 5)
    ours = jax.jit(our_greedy, static_argnums=(0, 1))(
        graphdef, cfg, params, tokens, jnp.array(lengths)
    )
    for row, length in enumerate(lengths):
        assert ours[row].tolist() == torch_greedy(reference, tokens[row], length)
