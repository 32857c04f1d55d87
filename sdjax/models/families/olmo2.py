"""OLMo 2: norms after each sublayer, and norms of queries and keys over all heads together."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import llama
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig

NAMES = llama.NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "attention_norm": "post_attention_layernorm.weight",
    "mlp_norm": "post_feedforward_layernorm.weight",
}


def differences(fields: hf.Fields) -> dict[str, Any]:
    """Returns the ModelConfig fields in which OLMo 2 and 3 differ from Llama."""
    bias = hf.flag(fields, "attention_bias")
    return {
        "norm_cast": "after",
        "norm_placement": "post",
        "qk_norm": "full",
        "qkv_bias": bias,
        "o_bias": bias,
    }


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, {"attention_bias"})
    sizes = hf.sizes(fields, rms_norm_eps=1e-5, max_position_embeddings=2048)
    rope = hf.rope(fields)
    return ModelConfig(
        family="olmo2",
        layers=(LayerKind(rope=rope),) * sizes["num_layers"],
        **differences(fields),
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    return hf.common_fields(cfg, "Olmo2ForCausalLM") | {"attention_bias": cfg.o_bias}


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
