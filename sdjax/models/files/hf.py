"""Reading and writing the config.json fields that model families share.

A field that changes what the model computes is read or refused, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from sdjax.errors import UserError
from sdjax.models.network.model_config import (
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Rope,
    RopeScaling,
    YarnScaling,
)

Fields = Mapping[str, Any]

# Every family reads these.
COMMON = {
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
}

# Only this value of each of these is implemented.
ONLY = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}

# These do not change what a decoder-only model computes.
HARMLESS = {
    "architectures",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "pretraining_tp",
    "is_llama_config",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "chunk_size_feed_forward",
    "name_or_path",
    "unsloth_fixed",
    "max_length",
    "max_window_layers",
}


def check_known(hf: Fields, read: Collection[str] = ()) -> None:
    """Raises UserError for a field that is neither read nor harmless nor empty.

    `read` are the fields that the family reads in addition to COMMON.
    """
    for name, value in hf.items():
        if name in COMMON or name in HARMLESS or name in read:
            continue
        if name in ONLY:
            if value is not None and value != ONLY[name]:
                refuse(name, value, f"only {ONLY[name]!r} is supported")
            continue
        neutral = value is None or value in (False, 0, 1, "", [], {})
        if not neutral and not name.startswith("_") and not name.endswith("version"):
            refuse(name, value, f"unknown for model_type {hf.get('model_type')!r}")


def refuse(name: str, value: object, why: str) -> None:
    """Raises a UserError that names a field of config.json, its value and what is wrong."""
    raise UserError(f"config.json: {name} is {value!r}: {why}")


def sizes(hf: Fields, **defaults: Any) -> dict[str, Any]:
    """Returns the ModelConfig fields that every family reads alike.

    `defaults` are the values of fields that config.json may omit, as in the family's config class
    in transformers.
    """

    def get(name: str) -> Any:
        value = hf.get(name)
        if value is None:
            value = defaults.get(name)
        if value is None:
            raise UserError(f"config.json: {name} is missing: is this a model folder?")
        return value

    def size(name: str) -> int:
        value = get(name)
        if not isinstance(value, int) or value < 1:
            refuse(name, value, "must be a whole number of at least 1")
        return value

    heads = size("num_attention_heads")
    tied = hf.get("tie_word_embeddings")
    kv_heads = hf.get("num_key_value_heads") or defaults.get("num_key_value_heads") or heads
    head_dim = hf.get("head_dim") or defaults.get("head_dim") or size("hidden_size") // heads
    if heads % kv_heads:
        refuse("num_key_value_heads", kv_heads, f"must divide num_attention_heads ({heads})")
    if head_dim % 2:
        refuse("head_dim", head_dim, "must be even: rotary embedding turns pairs")
    return {
        "vocab_size": size("vocab_size"),
        "num_layers": size("num_hidden_layers"),
        "embed": size("hidden_size"),
        "mlp": size("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": size("max_position_embeddings"),
        "norm_eps": float(get("rms_norm_eps")),
        "tie_embeddings": bool(defaults.get("tie_word_embeddings") if tied is None else tied),
    }


def windows(hf: Fields, layer_types: list[str], window: int | None) -> tuple[int | None, ...]:
    """Returns each layer's sliding window, or None, from its type."""
    layers = hf["num_hidden_layers"]
    if len(layer_types) != layers:
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
    return rope_of(hf, hf.get(name) or {}, name, theta)


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
    if kind not in _ROPE_KEYS:
        refuse(f"{name}.rope_type", kind, f"one of {', '.join(_ROPE_KEYS)} is supported")
    known = _ROPE_KEYS[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    for key, value in given.items():
        if key not in known and value is not None:
            refuse(f"{name}.{key}", value, f"unknown for rope_type {kind!r}")
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        refuse(f"{name}.partial_rotary_factor", given["partial_rotary_factor"], "only 1.0")
    theta = given.get("rope_theta") or hf.get("rope_theta") or theta
    return Rope(theta=float(theta), scaling=_scaling(hf, given, name, kind))


def _scaling(hf: Fields, given: Fields, name: str, kind: str) -> RopeScaling | None:
    if kind == "default":
        return None
    original = (
        hf.get("original_max_position_embeddings")
        or given.get("original_max_position_embeddings")
        or hf.get("max_position_embeddings")
    )
    factor = given.get("factor")
    if factor is None and kind == "yarn":
        factor = hf["max_position_embeddings"] / original
    given = {**given, "factor": factor}
    for key in _ROPE_NEEDS[kind]:
        if given.get(key) is None:
            refuse(f"{name}.{key}", None, f"rope_type {kind!r} needs it")
    factor = float(given["factor"])
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=float(given["low_freq_factor"]),
            high_freq_factor=float(given["high_freq_factor"]),
            original_max_positions=int(original),  # type: ignore[arg-type]
        )
    return YarnScaling(
        factor=factor,
        original_max_positions=int(original),  # type: ignore[arg-type]
        attention_factor=_yarn_attention_factor(factor, given),
        beta_fast=float(given.get("beta_fast") or 32),
        beta_slow=float(given.get("beta_slow") or 1),
        truncate=bool(given.get("truncate", True)),
    )


def _yarn_attention_factor(factor: float, given: Fields) -> float:
    """Returns the factor of cos and sin: as given, or as the paper derives it from `factor`."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])

    def suggested(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
    if mscale and all_dim:
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
    return out


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
        "rope_theta": rope.theta,  # where transformers 4 looks for it
    }


def window_fields(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of sliding windows. All windows of a config have one size."""
    sizes = {w for w in cfg.windows if w is not None}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in cfg.windows]
    return {"sliding_window": max(sizes, default=None), "layer_types": kinds}
