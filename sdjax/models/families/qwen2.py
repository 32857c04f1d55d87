"""Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen: Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import llama
from sdjax.models.files import hf
from sdjax.models.network.model_config import ModelConfig

NAMES = llama.NAMES
WINDOW_FIELDS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}


def windows(fields: hf.Fields, layers: int) -> tuple[int | None, ...]:
    """Returns each layer's window: without layer_types, those from max_window_layers on have it."""
    window = fields.get("sliding_window", 4096) if fields.get("use_sliding_window") else None
    first = layers if window is None else fields.get("max_window_layers", 28)
    by_depth = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return hf.windows(fields, fields.get("layer_types") or by_depth, window)


def window_fields(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of sliding windows."""
    out = hf.window_fields(cfg)
    return out | {"use_sliding_window": out["sliding_window"] is not None}


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the model that a config.json says."""
    hf.check_known(fields, WINDOW_FIELDS)
    sizes = hf.sizes(
        fields, rms_norm_eps=1e-6, max_position_embeddings=32768, num_key_value_heads=32
    )
    rope = hf.rope(fields)
    return ModelConfig(
        family="qwen2",
        windows=windows(fields, sizes["num_layers"]),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        qkv_bias=True,
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns config.json for the model."""
    return hf.common_fields(cfg, "Qwen2ForCausalLM") | window_fields(cfg)
