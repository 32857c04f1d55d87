"""Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen: Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import llama
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig

NAMES = llama.NAMES
WINDOW_FIELDS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}


def layers(fields: hf.Fields, count: int) -> tuple[LayerKind, ...]:
    """Returns the kind of each layer.

    Without layer_types, the layers from max_window_layers on have the sliding window.
    """
    rope = hf.rope(fields)
    window = hf.window(fields, 4096) if hf.flag(fields, "use_sliding_window") else None
    first = count if window is None else hf.whole(fields, "max_window_layers", 28, least=0)
    by_depth = ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    windows = hf.windows(fields, fields.get("layer_types") or by_depth, window)
    return tuple(LayerKind(window=w, rope=rope) for w in windows)


def window_fields(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json that describe sliding windows."""
    out = hf.window_fields(cfg)
    return out | {"use_sliding_window": out["sliding_window"] is not None}


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    # attention_bias has no effect in Qwen2, which always has these biases.
    hf.check_known(fields, WINDOW_FIELDS | {"attention_bias"})
    sizes = hf.sizes(
        fields, rms_norm_eps=1e-6, max_position_embeddings=32768, num_key_value_heads=32
    )
    return ModelConfig(
        family="qwen2",
        layers=layers(fields, sizes["num_layers"]),
        qkv_bias=True,
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    return hf.common_fields(cfg, "Qwen2ForCausalLM") | window_fields(cfg)


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
