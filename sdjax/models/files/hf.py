"""Reading and writing the config.json fields that model families share."""

from __future__ import annotations

import math
from typing import Any

from sdjax.models.files.fields import (
    Fields,
    check_known,
    flag,
    number,
    refuse,
    table,
    whole,
)
from sdjax.models.network.model_config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    Rope,
    RopeScaling,
    YarnScaling,
)

__all__ = [
    "Fields",
    "check_known",
    "common_fields",
    "flag",
    "number",
    "older_rope_fields",
    "one_window",
    "refuse",
    "rope",
    "rope_fields",
    "rope_of",
    "sizes",
    "table",
    "whole",
    "window",
    "window_fields",
    "windows",
]

MOST_LAYERS = 10_000
"""No model comes near it. With many more, listing their tensors would take minutes."""


def sizes(hf: Fields, **defaults: Any) -> dict[str, Any]:
    """Returns the ModelConfig fields that every family reads alike.

    `defaults` are the values of fields that config.json may omit, as in the family's config class
    in transformers.
    """

    heads = whole(hf, "num_attention_heads")
    kv_heads = whole(hf, "num_key_value_heads", defaults.get("num_key_value_heads", heads))
    if hf.get("num_key_value_heads", 0) is None:  # there, and null
        kv_heads = heads
    embed = whole(hf, "hidden_size")
    head_dim = whole(hf, "head_dim", defaults.get("head_dim") or max(embed // heads, 1))
    if heads % kv_heads:
        refuse("num_key_value_heads", kv_heads, f"must divide num_attention_heads ({heads})")
    if head_dim % 2:
        refuse("head_dim", head_dim, "must be even: rotary embedding turns pairs")
    return {
        "vocab_size": whole(hf, "vocab_size"),
        "num_layers": whole(hf, "num_hidden_layers", most=MOST_LAYERS),
        "embed": embed,
        "mlp": whole(hf, "intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": whole(
            hf, "max_position_embeddings", defaults.get("max_position_embeddings")
        ),
        "norm_eps": number(hf, "rms_norm_eps", defaults.get("rms_norm_eps")),
        "tie_embeddings": flag(
            hf, "tie_word_embeddings", bool(defaults.get("tie_word_embeddings"))
        ),
    }


def window(hf: Fields, default: int | None) -> int | None:
    """Returns sliding_window. null is no window, and a missing field is the default."""
    if hf.get("sliding_window", default) is None:
        return None
    return whole(hf, "sliding_window", default)


def one_window(hf: Fields, default: int | None) -> int | None:
    """Returns sliding_window of a family that has it in every layer.

    transformers ignores layer_types there, and vLLM reads it. So it may say nothing else.
    """
    found = window(hf, default)
    kind = "full_attention" if found is None else "sliding_attention"
    kinds = hf.get("layer_types") or [kind] * whole(hf, "num_hidden_layers", most=MOST_LAYERS)
    if set(windows(hf, kinds, found)) != {found}:
        refuse("layer_types", kinds, f"sliding_window is {found}, for every layer")
    return found


def windows(hf: Fields, layer_types: list[str], window: int | None) -> tuple[int | None, ...]:
    """Returns each layer's sliding window, or None, from its type."""
    layers = hf["num_hidden_layers"]
    if not isinstance(layer_types, list) or len(layer_types) != layers:
        refuse("layer_types", layer_types, f"must have num_hidden_layers ({layers}) entries")
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            refuse("layer_types", kind, "only full_attention and sliding_attention are supported")
    if "sliding_attention" in layer_types and not window:
        refuse("sliding_window", window, "layer_types has sliding_attention, which needs one")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def rope(hf: Fields, theta: float = 10_000.0) -> Rope:
    """Returns the rotary embedding of a config that has one for all layers.

    Reads `rope_parameters` (transformers 5) and `rope_scaling` with `rope_theta` (transformers 4).
    """
    name = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    return rope_of(hf, table(hf, name), name, theta)


_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}

_ROPE_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


def rope_of(hf: Fields, given: Fields, name: str, theta: float) -> Rope:
    """Returns the rotary embedding of one table of parameters, found in the field `name`.

    `theta` is the default of rope_theta.
    """
    kind = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        refuse(f"{name}.rope_type", kind, f"one of {', '.join(_ROPE_KEYS)} is supported")
    known = _ROPE_KEYS[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    for key, value in given.items():
        if key not in known and value is not None:
            refuse(f"{name}.{key}", value, f"unknown for rope_type {kind!r}")
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        refuse(f"{name}.partial_rotary_factor", given["partial_rotary_factor"], "only 1.0")
    theta = number(given, "rope_theta", number(hf, "rope_theta", theta), f"{name}.")
    return Rope(theta=theta, scaling=_scaling(hf, given, name, kind))


def _scaling(hf: Fields, given: Fields, name: str, kind: str) -> RopeScaling | None:
    if kind == "default":
        return None
    key = "original_max_position_embeddings"
    chosen = hf if hf.get(key) is not None else given
    original = whole(chosen, key, hf.get("max_position_embeddings"))
    factor = given.get("factor")
    if factor is None and kind == "yarn":
        factor = whole(hf, "max_position_embeddings") / original
    given = {**given, "factor": factor}
    for key in _ROPE_NEEDS[kind]:
        if given.get(key) is None:
            refuse(f"{name}.{key}", None, f"rope_type {kind!r} needs it")
    where = f"{name}."
    factor = number(given, "factor", where=where)
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=number(given, "low_freq_factor", where=where),
            high_freq_factor=number(given, "high_freq_factor", where=where),
            original_max_positions=original,
        )
    truncate = given.get("truncate", True)
    truncate = False if truncate is None else truncate  # as transformers reads null
    if not isinstance(truncate, bool):
        refuse(f"{name}.truncate", truncate, "must be true or false")
    return YarnScaling(
        factor=factor,
        original_max_positions=original,
        attention_factor=number(
            given, "attention_factor", _yarn_attention_factor(factor, given, where), where
        ),
        beta_fast=number(given, "beta_fast", 32, where),
        beta_slow=number(given, "beta_slow", 1, where),
        truncate=truncate,
    )


def _yarn_attention_factor(factor: float, given: Fields, where: str) -> float:
    """Returns the factor of cos and sin as the paper derives it from `factor`."""

    def suggested(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        mscale, all_dim = (number(given, k, where=where) for k in ("mscale", "mscale_all_dim"))
        return suggested(mscale) / suggested(all_dim)
    return suggested(1.0)


def rope_fields(r: Rope) -> dict[str, Any]:
    """Returns a rotary embedding as the rope_parameters of transformers 5."""
    out: dict[str, Any] = {"rope_theta": r.theta, "rope_type": "default"}
    match r.scaling:
        case LinearScaling(factor=factor):
            out |= {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            out |= {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_positions,
            }
        case YarnScaling() as s:
            out |= {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_max_positions,
                "attention_factor": s.attention_factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.truncate,
            }
        case LongRopeScaling() as s:
            out |= {
                "rope_type": "longrope",
                "short_factor": list(s.short),
                "long_factor": list(s.long),
                "original_max_position_embeddings": s.original_max_positions,
                "attention_factor": s.attention_factor,
            }
    if r.share != 1:
        out["partial_rotary_factor"] = r.share
    if r.query_growth is not None:
        out["llama_4_scaling_beta"] = r.query_growth.beta
        out["original_max_position_embeddings"] = r.query_growth.original_max_positions
    return out


def older_rope_fields(r: Rope) -> dict[str, Any]:
    """Returns a rotary embedding as transformers 4 reads it: rope_theta and rope_scaling."""
    scaling = {k: v for k, v in rope_fields(r).items() if k != "rope_theta"}
    match r.scaling:
        case None:
            return {"rope_theta": r.theta, "rope_scaling": None}
        case LinearScaling(factor=factor):
            # The OLMo 2 of transformers 4 reads these two names only; all others read them too.
            scaling = {"type": "linear", "factor": factor}
    return {"rope_theta": r.theta, "rope_scaling": scaling}


def common_fields(cfg: ModelConfig, architecture: str) -> dict[str, Any]:
    """Returns the config.json fields that every family writes alike.

    The rotary embedding is that of the first layer that has one.
    """
    rope = next((kind.rope for kind in cfg.layers if kind.rope is not None), Rope())
    return {
        "architectures": [architecture],
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embed,
        "intermediate_size": cfg.mlp,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_parameters": rope_fields(rope),
        **older_rope_fields(rope),
    }


def window_fields(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of sliding windows. All windows of a config have one size."""
    sizes = {w for w in cfg.windows if w is not None}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in cfg.windows]
    return {"sliding_window": max(sizes, default=None), "layer_types": kinds}
