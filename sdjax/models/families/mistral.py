"""Mistral: Llama with a sliding window in every layer, or in none."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import llama
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig

NAMES = llama.NAMES


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, {"sliding_window", "layer_types"})
    sizes = hf.sizes(
        fields, rms_norm_eps=1e-6, max_position_embeddings=131_072, num_key_value_heads=8
    )
    kind = LayerKind(window=hf.one_window(fields, 4096), rope=hf.rope(fields))
    return ModelConfig(family="mistral", layers=(kind,) * sizes["num_layers"], **sizes, **runtime)


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    fields = hf.common_fields(cfg, "MistralForCausalLM")
    return fields | {"sliding_window": cfg.layers[0].window}


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
