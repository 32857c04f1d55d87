"""Phi-3, Phi-4 and Phi-4-mini: Mistral with fused matrices, longrope and partial rotary embedding.

A checkpoint has one matrix for queries, keys and values, and one for gate and up.
"""

from __future__ import annotations

import math
from typing import Any

from sdjax.models.families import mistral
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network.model_config import LayerKind, LongRopeScaling, ModelConfig, Rope

NAMES = mistral.NAMES | {
    **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj.weight"),
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight"),
}
PARTIAL, ORIGINAL = "partial_rotary_factor", "original_max_position_embeddings"
KNOWN = {"factor", "attention_factor", "short_factor", "long_factor", ORIGINAL}


def rope(fields: hf.Fields, head_dim: int, max_positions: int) -> Rope:
    """Returns the rotary embedding of all layers."""
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    given = hf.table(fields, name)
    where = f"{name}." if given.get(PARTIAL) is not None else ""
    share = hf.number(given if where else fields, PARTIAL, 1.0, where)
    pairs, odd = divmod(int(head_dim * share), 2)
    if share > 1 or odd or not pairs:
        hf.refuse(where + PARTIAL, share, f"must leave an even number of {head_dim} dimensions")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "longrope", "su", "yarn"):  # transformers reads the last as longrope
        hf.refuse(f"{name}.rope_type", kind, "phi3 has default and longrope")
    others = KNOWN if kind != "default" else ()
    plain = {k: v for k, v in given.items() if k != PARTIAL and k not in others}
    base = hf.rope_of(fields, {**plain, "rope_type": "default"}, name, 10_000.0)
    scaling = None if kind == "default" else _longrope(fields, given, name, pairs, max_positions)
    return Rope(theta=base.theta, scaling=scaling, share=share)


def _longrope(
    fields: hf.Fields, given: hf.Fields, name: str, pairs: int, max_positions: int
) -> LongRopeScaling:
    """Returns longrope's scaling.

    Args:
        fields: All fields of config.json.
        given: The table of parameters.
        name: The field of the table.
        pairs: How many pairs of dimensions are turned.
        max_positions: The model's context.
    """
    for key in ("short_factor", "long_factor"):
        value = given.get(key)
        listed = value if isinstance(value, list) else []
        good = all(type(x) in (int, float) and 0 < x < math.inf for x in listed)
        if len(listed) != pairs or not good:
            hf.refuse(f"{name}.{key}", value, f"must be {pairs} positive numbers")
    original = hf.whole(fields, ORIGINAL, 4096, least=2)  # transformers reads no other field
    usual = attention_factor(max_positions, original)
    if given.get("factor") is not None:
        usual = attention_factor(hf.number(given, "factor", where=f"{name}.") * original, original)
    return LongRopeScaling(
        short=tuple(map(float, given["short_factor"])),
        long=tuple(map(float, given["long_factor"])),
        original_max_positions=original,
        max_positions=max_positions,
        attention_factor=hf.number(given, "attention_factor", usual, f"{name}."),
        use_long=max_positions > original,
    )


def attention_factor(max_positions: float, original: int) -> float:
    """Returns the factor of cos and sin where config.json names none."""
    stretch = max_positions / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, {"sliding_window", "layer_types", PARTIAL})
    sizes = hf.sizes(fields, rms_norm_eps=1e-5, max_position_embeddings=4096)
    turns = rope(fields, sizes["head_dim"], sizes["max_positions"])
    kind = LayerKind(window=hf.one_window(fields, None), rope=turns)
    return ModelConfig(family="phi3", layers=(kind,) * sizes["num_layers"], **sizes, **runtime)


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    fields = mistral.to_hf(cfg) | {"architectures": ["Phi3ForCausalLM"]}
    turns = cfg.layers[0].rope or Rope()
    fields[PARTIAL] = turns.share  # where transformers 4 reads it
    if isinstance(turns.scaling, LongRopeScaling):
        s = turns.scaling
        # transformers 4 takes these three fields and no other, if the usual factor will do.
        older: dict[str, Any] = {
            "type": "longrope",
            "short_factor": [*s.short],
            "long_factor": [*s.long],
        }
        if s.attention_factor != attention_factor(s.max_positions, s.original_max_positions):
            older["attention_factor"] = s.attention_factor
        fields |= {ORIGINAL: s.original_max_positions, "rope_scaling": older}
        fields["max_position_embeddings"] = s.max_positions
    return fields


FAMILY = Family(from_hf=from_hf, to_hf=to_hf, names=NAMES)
