"""The table of model families: config.json's model_type -> the module that reads it.

A family is one file: `from_hf`, `to_hf`, and NAMES, its tensor names of one layer.
"""

from __future__ import annotations

from typing import Any, Protocol

from sdjax.errors import UserError
from sdjax.models.families import llama, olmo2, olmo3, qwen2, qwen3
from sdjax.models.files import hf
from sdjax.models.network.model_config import ModelConfig


class Family(Protocol):
    """What a family's module has."""

    NAMES: dict[str, str]

    def from_hf(self, fields: hf.Fields, **runtime: Any) -> ModelConfig:
        """Returns the model that a config.json says."""

    def to_hf(self, cfg: ModelConfig) -> dict[str, Any]:
        """Returns config.json for the model."""


FAMILIES: dict[str, Family] = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "olmo2": olmo2,
    "olmo3": olmo3,
}


def family(model_type: str) -> Family:
    """Returns the module of a model family."""
    if model_type not in FAMILIES:
        raise UserError(
            f"config.json: model_type is {model_type!r}: supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the model that a config.json says; `runtime` are compute_dtype, remat, attention."""
    return family(fields.get("model_type", "")).from_hf(fields, **runtime)


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the model as the fields of a config.json."""
    return family(cfg.family).to_hf(cfg)
