"""The table of model families: config.json's model_type to the Family that reads it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.files.fields import refuse, without_null
from sdjax.models.network.layer import Shapes
from sdjax.models.network.model_config import ModelConfig

FAMILIES: dict[str, Family] = {
    name: import_module(f"sdjax.models.families.{name}").FAMILY
    for name in (
        "llama",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "olmo2",
        "olmo3",
        "smollm3",
        "gemma3_text",
        "granite",
        "mistral",
        "ministral3",
        "phi3",
    )
}


def family(model_type: str) -> Family:
    """Returns a model family. Raises UserError, which lists all families, for an unknown one."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        refuse("model_type", model_type, f"supported are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def from_hf(fields: hf.Fields, *, context: int | None = None, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json.

    A field that is null counts as absent. `runtime` are compute_dtype, remat, attention and lora.
    `context` is a run's model.context. With None, the model is read for its longest rows, and one
    that depends on the context is not refused.
    """
    fields = without_null(fields)
    cfg = family(fields.get("model_type", "")).from_hf(fields, **runtime)
    if context == 0 and (scaling := cfg.by_context) is not None:
        why = (
            f"its divisors depend on the longest row of the run; set model.context to at most "
            f"{scaling.original_max_positions} tokens for the short ones, or to more for the long"
        )
        refuse("rope_type", "longrope", why)
    return cfg.within(context) if context else cfg


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns a model as the fields of a config.json."""
    return family(cfg.family).to_hf(cfg)


def layer_shapes(cfg: ModelConfig) -> Shapes:
    """Returns shape and logical axes of every array of one layer of a model."""
    return family(cfg.family).layer_shapes(cfg)
