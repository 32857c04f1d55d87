"""Ministral 3: Mistral with YaRN, and queries that grow with their position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sdjax.models.families import mistral
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig, QueryGrowth, Rope

BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
DEFAULT = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    ORIGINAL: 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    BETA: 0.1,
}
"""The rope_parameters of a config.json without them, as in transformers."""


def rope(fields: hf.Fields) -> Rope:
    """Returns the rotary embedding of all layers.

    transformers needs a growth of queries; as in vLLM, a config.json without one has none.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    given = hf.table(fields, name) if fields.get(name) is not None else DEFAULT
    # transformers writes the model's context here, and does not read it.
    plain = {k: v for k, v in given.items() if k not in (BETA, "max_position_embeddings")}
    beta = given.get(BETA) or None
    if beta is not None and (given.get("rope_type") or given.get("type")) in (None, "default"):
        plain.pop(ORIGINAL, None)  # the growth reads it, and nothing else
    out = hf.rope_of(fields, plain, name, 10_000.0)
    if beta is None:
        return out
    original = getattr(out.scaling, "original_max_positions", None)
    growth = QueryGrowth(
        beta=hf.number(given, BETA, where=f"{name}."),
        original_max_positions=original or hf.whole(given, ORIGINAL),
    )
    return replace(out, query_growth=growth)


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, {"sliding_window", "layer_types"})
    sizes = hf.sizes(
        fields,
        rms_norm_eps=1e-5,
        max_position_embeddings=262_144,
        num_key_value_heads=8,
        head_dim=128,
    )
    kind = LayerKind(window=hf.one_window(fields, None), rope=rope(fields))
    layers = (kind,) * sizes["num_layers"]
    return ModelConfig(family="ministral3", layers=layers, **sizes, **runtime)


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    fields = mistral.to_hf(cfg) | {"architectures": ["Ministral3ForCausalLM"]}
    # Never null, because null is DEFAULT.
    scaling = {k: v for k, v in fields["rope_parameters"].items() if k != "rope_theta"}
    return fields | {"rope_scaling": scaling}


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=mistral.NAMES)
