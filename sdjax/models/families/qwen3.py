"""Qwen3 (dense): Llama with a norm of each query and key head, and an explicit head_dim."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import llama, qwen2
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import ModelConfig

NAMES = llama.NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, qwen2.WINDOW_FIELDS | {"attention_bias"})
    sizes = hf.sizes(
        fields,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        num_key_value_heads=32,
        head_dim=128,
    )
    bias = hf.flag(fields, "attention_bias")
    return ModelConfig(
        family="qwen3",
        layers=qwen2.layers(fields, sizes["num_layers"]),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    fields = hf.common_fields(cfg, "Qwen3ForCausalLM") | qwen2.window_fields(cfg)
    return fields | {"attention_bias": cfg.o_bias}


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
