"""OLMo 3: OLMo 2 with a sliding window in three of four layers, and YaRN only in the fourth."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import olmo2
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig, Rope

NAMES = olmo2.NAMES
THETA = 500_000.0


def ropes(fields: hf.Fields) -> tuple[Rope, Rope]:
    """Returns the rotary embeddings of full and of sliding layers.

    transformers 5 writes rope_parameters by layer type. transformers 4 wrote a rope_scaling that
    holds for full layers alone.
    """
    by_type = hf.table(fields, "rope_parameters")
    extra = set(by_type) - {"full_attention", "sliding_attention"}
    if extra:
        name = sorted(extra)[0]
        hf.refuse(f"rope_parameters.{name}", by_type[name], "olmo3 has these by layer type")
    full = hf.table(by_type, "full_attention") | hf.table(fields, "rope_scaling")
    sliding = hf.table(by_type, "sliding_attention")
    if not (full.get("truncate", True) and sliding.get("truncate", True)):
        hf.refuse("rope_parameters.truncate", False, "transformers ignores it for olmo3")
    # transformers reads this field by layer type alone.
    outer = {k: v for k, v in fields.items() if k != "original_max_position_embeddings"}
    return (
        hf.rope_of(outer, full, "rope_parameters.full_attention", THETA),
        hf.rope_of(outer, sliding, "rope_parameters.sliding_attention", THETA),
    )


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, {"attention_bias", "sliding_window", "layer_types"})
    sizes = hf.sizes(fields, rms_norm_eps=1e-5, max_position_embeddings=2048)
    layers = range(1, sizes["num_layers"] + 1)
    by_depth = ["full_attention" if i % 4 == 0 else "sliding_attention" for i in layers]
    kinds = fields.get("layer_types") or by_depth
    full, sliding = ropes(fields)
    windows = hf.windows(fields, kinds, hf.window(fields, 4096))
    return ModelConfig(
        family="olmo3",
        layers=tuple(LayerKind(window=w, rope=full if w is None else sliding) for w in windows),
        **olmo2.differences(fields),
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    full = [kind.rope or Rope() for kind in cfg.layers if kind.window is None]
    sliding = [kind.rope or Rope() for kind in cfg.layers if kind.window is not None]
    # A type that no layer has is written with the embedding of the other.
    ropes = {"full_attention": (full or sliding)[0], "sliding_attention": (sliding or full)[0]}
    return (
        hf.common_fields(cfg, "Olmo3ForCausalLM")
        | hf.window_fields(cfg)
        | {
            "attention_bias": cfg.o_bias,
            "rope_parameters": {kind: hf.rope_fields(rope) for kind, rope in ropes.items()},
            **hf.older_rope_fields(ropes["full_attention"]),
        }
    )


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
