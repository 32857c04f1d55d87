"""SmolLM3: Llama without rotary embedding in every fourth layer (NoPE)."""

from __future__ import annotations

from typing import Any

from sdjax.models.families import llama
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig

READ = {
    *("attention_bias", "no_rope_layers", "no_rope_layer_interval"),
    *("use_sliding_window", "sliding_window", "layer_types"),
}
THETA = 2_000_000.0


def rotated(fields: hf.Fields, count: int) -> list[bool]:
    """Returns whether each layer has a rotary embedding.

    no_rope_layers has a 1 for each layer that has one, and perhaps more entries than layers.
    """
    interval = hf.whole(fields, "no_rope_layer_interval", 4)
    given = fields.get("no_rope_layers")
    if given is None:
        return [(i + 1) % interval != 0 for i in range(count)]
    if not isinstance(given, list) or len(given) < count:
        hf.refuse("no_rope_layers", given, f"must have num_hidden_layers ({count}) entries")
    for entry in given:
        if entry not in (0, 1):
            hf.refuse("no_rope_layers", entry, "must be 1 (rotary embedding) or 0 (none)")
    return [bool(entry) for entry in given[:count]]


def layers(fields: hf.Fields, count: int) -> tuple[LayerKind, ...]:
    """Returns the kind of each layer.

    Without layer_types, a sliding window holds for the layers without rotary embedding.
    """
    rope, turned = hf.rope(fields, THETA), rotated(fields, count)
    window = None
    if hf.flag(fields, "use_sliding_window") and fields.get("sliding_window") is not None:
        window = hf.whole(fields, "sliding_window")
    by_rope = ["full_attention" if t or window is None else "sliding_attention" for t in turned]
    windows = hf.windows(fields, fields.get("layer_types") or by_rope, window)
    kinds = zip(windows, turned, strict=True)
    return tuple(LayerKind(window=w, rope=rope if t else None) for w, t in kinds)


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, READ)
    sizes = hf.sizes(
        fields,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    bias = hf.flag(fields, "attention_bias")
    return ModelConfig(
        family="smollm3",
        layers=layers(fields, sizes["num_layers"]),
        qkv_bias=bias,
        o_bias=bias,
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    fields = hf.common_fields(cfg, "SmolLM3ForCausalLM") | hf.window_fields(cfg)
    return fields | {
        "attention_bias": cfg.o_bias,
        "no_rope_layers": [int(kind.rope is not None) for kind in cfg.layers],
        "use_sliding_window": fields["sliding_window"] is not None,
    }


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=llama.NAMES)
