"""Tiny models and a tiny tokenizer, for tests of every part.

`model_folder` needs neither torch nor a download; `torch_model` makes transformers' own model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sdjax.models.families import registry
from sdjax.models.files import shards, tensors, weights
from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Transformer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"""

# One token per byte, the special tokens, and five that no text contains.
VOCABULARY = 256 + len(SPECIAL) + 5

FAMILIES = tuple(registry.FAMILIES)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

OF_FAMILY = {
    "qwen3_moe": {
        "num_experts": 8,  # as many as transformers lets a token run by default
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    """Returns config.json of a tiny model of a family, with some fields changed."""
    sizes = SIZES | OF_FAMILY.get(family, {})
    token_ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"model_type": family, **sizes, **token_ids, **changes}


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer that gives each byte a token, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def random_tensors(fields: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns float32 weights of a model by their Hugging Face names.

    They are large enough that every part of the model shows in its output.
    """
    rng = np.random.default_rng(seed)
    cfg, out = registry.from_hf(fields), {}
    for name, shape in tensors.stored_shapes(tensors.of(cfg)).items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if "norm" in name:
            out[name] = np.float32(1 - cfg.norm_offset) + 0.3 * noise
        elif len(shape) == 1:
            out[name] = 0.3 * noise
        else:
            out[name] = noise * (1.5 / math.sqrt(shape[1]))
    return out


def model_folder(
    folder: Path, family: str = "qwen3", seed: int = 0, sharper: float = 1.0, **changes: Any
) -> Path:
    """Writes a model folder with random weights and a tokenizer, and returns it.

    `sharper` multiplies the logits: at 4 a third of the positions are forks, at 1 few are.
    """
    write_tokenizer(folder)
    fields = config(family, **changes)
    (folder / "config.json").write_text(json.dumps(fields))
    generation = {"eos_token_id": [2, 0], "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    arrays = random_tensors(fields, seed)
    if sharper != 1.0:
        arrays["lm_head.weight"] *= np.float32(sharper)
    shapes = {name: array.shape for name, array in arrays.items()}
    shards.write(folder, shapes, "float32", arrays.values(), max_bytes=40_000)
    return folder


def torch_model(folder: Path):
    """Returns transformers' float32 model of a folder, with eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    # Its threads spin while they wait for each other, which slows tiny products on few cores.
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    ).eval()


def per_expert(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays under the names of a checkpoint: transformers stacks experts in memory."""
    out = {}
    for name, array in named.items():
        if "experts." not in name:
            out[name] = array
            continue
        start, matrix = name.rsplit(".", 1)
        for e, one in enumerate(array):
            parts = np.split(one, 2) if matrix == "gate_up_proj" else [one]
            for part, of in zip(parts, matrix.removesuffix("_proj").split("_"), strict=True):
                out[f"{start}.{e}.{of}_proj.weight"] = part
    return out


def load(folder: Path, **runtime: Any):
    """Returns a folder's ModelConfig, the graph of its module, and its params."""
    cfg = weights.read_config(folder, **{"compute_dtype": "float32", **runtime})
    return cfg, graph(cfg), weights.load(folder, cfg)


def graph(cfg: ModelConfig) -> nnx.GraphDef:
    """Returns the structure of a model, for nnx.merge with its params."""
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))


def with_room(cache: transformer.Cache, cfg: ModelConfig, slots: int) -> transformer.Cache:
    """Returns a cache with `slots` more slots."""
    room = [(0, 0)] * 4
    room[transformer.slot_axis(cfg)] = (0, slots)
    keys, values = jax.tree.map(lambda x: jnp.pad(x, room), (cache.keys, cache.values))
    return transformer.Cache(keys=keys, values=values, length=cache.length)
