"""Llama 2 and 3.x, SmolLM2 and models of the same architecture."""

from __future__ import annotations

from typing import Any

from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig

# Most names are the same in every family.
NAMES = {
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
}


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, {"attention_bias"})
    sizes = hf.sizes(fields, rms_norm_eps=1e-6, max_position_embeddings=2048)
    rope, bias = hf.rope(fields), hf.flag(fields, "attention_bias")
    return ModelConfig(
        family="llama",
        layers=(LayerKind(rope=rope),) * sizes["num_layers"],
        qkv_bias=bias,
        o_bias=bias,
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    return hf.common_fields(cfg, "LlamaForCausalLM") | {"attention_bias": cfg.o_bias}


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
