"""Gemma 3: four norms of (1 + w) per layer, scaled embeddings, and a window in five of six layers.

The text part of a checkpoint that also sees images (`gemma3`) is such a model.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.models.families import qwen3
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, ModelConfig, Rope

NAMES = qwen3.NAMES | {
    "attention_norm": "input_layernorm.weight",
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}
GLOBAL, LOCAL = "full_attention", "sliding_attention"
ACTIVATION = "gelu_pytorch_tanh"
THETAS = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}
READ = {
    *("attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar"),
    *("sliding_window_pattern", "rope_local_base_freq", "hidden_activation"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
}
PART_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
}


def check(fields: hf.Fields) -> None:
    """Raises UserError for a field that changes the model in a way that is not supported."""
    hf.check_known(fields, READ)
    activation = fields.get("hidden_activation")
    if activation not in (None, ACTIVATION):
        hf.refuse("hidden_activation", activation, f"only {ACTIVATION!r} is supported")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.get(name) is not None:
            hf.refuse(name, fields[name], "soft caps of logits are not supported; only null is")


def ropes(fields: hf.Fields) -> dict[str, Rope]:
    """Returns the rotary embeddings of global and of local layers.

    transformers 5 writes rope_parameters by layer type. transformers 4 wrote rope_theta and
    rope_scaling, which hold for global layers alone, and rope_local_base_freq.
    """
    by_type = hf.table(fields, "rope_parameters")
    for name in sorted(set(by_type) - set(THETAS)):
        hf.refuse(f"rope_parameters.{name}", by_type[name], "gemma3_text has these by layer type")
    tables = {kind: hf.table(by_type, kind) for kind in THETAS}
    tables[GLOBAL] |= hf.table(fields, "rope_scaling")
    thetas = {
        GLOBAL: hf.number(fields, "rope_theta", THETAS[GLOBAL]),
        LOCAL: hf.number(fields, "rope_local_base_freq", THETAS[LOCAL]),
    }
    # transformers reads this field by layer type alone.
    left = ("rope_theta", "original_max_position_embeddings")
    outer = {k: v for k, v in fields.items() if k not in left}
    return {
        kind: hf.rope_of(outer, table, f"rope_parameters.{kind}", thetas[kind])
        for kind, table in tables.items()
    }


def layers(fields: hf.Fields, count: int) -> tuple[LayerKind, ...]:
    """Returns the kind of each layer. Without layer_types, every sixth layer is global."""
    pattern = hf.whole(fields, "sliding_window_pattern", 6)
    by_depth = [GLOBAL if (i + 1) % pattern == 0 else LOCAL for i in range(count)]
    windows = hf.windows(fields, fields.get("layer_types") or by_depth, hf.window(fields, 4096))
    rope = ropes(fields)
    return tuple(LayerKind(window=w, rope=rope[GLOBAL if w is None else LOCAL]) for w in windows)


def embed_scale(embed: int, dtype: str) -> float:
    """Returns sqrt(embed), rounded to the compute dtype as in transformers: 34.0 for 1152."""
    # In NumPy, because a config is read before JAX's devices are.
    return float(np.float32(math.sqrt(embed)).astype(jnp.dtype(dtype)))


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    check(fields)
    sizes = hf.sizes(
        fields,
        rms_norm_eps=1e-6,
        max_position_embeddings=PART_DEFAULTS["max_position_embeddings"],
        num_key_value_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
    )
    bias = hf.flag(fields, "attention_bias")
    scalar = hf.whole(fields, "query_pre_attn_scalar", 256)
    return ModelConfig(
        family="gemma3_text",
        layers=layers(fields, sizes["num_layers"]),
        norm_cast="after",
        norm_placement="both",
        norm_offset=1.0,
        qk_norm="head",
        activation="gelu_tanh",
        embed_scale=embed_scale(sizes["embed"], runtime.get("compute_dtype", "bfloat16")),
        query_scale=None if scalar == sizes["head_dim"] else scalar**-0.5,
        qkv_bias=bias,
        o_bias=bias,
        **sizes,
        **runtime,
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    found = {GLOBAL if kind.window is None else LOCAL: kind.rope or Rope() for kind in cfg.layers}
    rope = {kind: found.get(kind, Rope(theta=theta)) for kind, theta in THETAS.items()}
    scalar = cfg.head_dim if cfg.query_scale is None else round(cfg.query_scale**-2)
    fields = hf.common_fields(cfg, "Gemma3ForCausalLM") | hf.window_fields(cfg)
    del fields["hidden_act"]
    return fields | {
        "attention_bias": cfg.o_bias,
        "hidden_activation": ACTIVATION,
        "query_pre_attn_scalar": scalar,
        "rope_parameters": {kind: hf.rope_fields(one) for kind, one in rope.items()},
        **hf.older_rope_fields(rope[GLOBAL]),
        "rope_local_base_freq": rope[LOCAL].theta,
    }


FAMILY = Family(
    from_hf=from_hf, to_hf=to_hf, names=NAMES, part_of="gemma3", part_defaults=PART_DEFAULTS
)
