"""Granite 3: Llama with four multipliers: of embeddings, attention, sublayers and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sdjax.models.families import llama
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import ModelConfig

MULTIPLIERS = {
    "embedding_multiplier": "embed_scale",
    "attention_multiplier": "query_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logits_divisor",
}
"""The field of ModelConfig for each of config.json. All are 1 where config.json has none."""


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    scales: dict[str, Any] = {
        ours: hf.number(fields, name, 1.0) for name, ours in MULTIPLIERS.items()
    }
    others = {name: value for name, value in fields.items() if name not in MULTIPLIERS}
    return replace(llama.from_hf(others, **runtime), family="granite", **scales)


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    scales = {name: getattr(cfg, ours) for name, ours in MULTIPLIERS.items()}
    return llama.to_hf(cfg) | {"architectures": ["GraniteForCausalLM"]} | scales


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=llama.NAMES)
