"""Qwen3-MoE (30B-A3B, 235B-A22B): Qwen3 with experts in place of the MLP of every layer.

config.json may mix layers of experts with dense ones; such a model is refused. None of the
published checkpoints does.
"""

from __future__ import annotations

from typing import Any

from sdjax.models.families import qwen3
from sdjax.models.families.family import Family
from sdjax.models.files import hf
from sdjax.models.network import experts, layer
from sdjax.models.network.model_config import Experts, LayerKind, ModelConfig

NAMES = qwen3.NAMES | {
    "gate": "mlp.experts.{expert}.gate_proj.weight",
    "up": "mlp.experts.{expert}.up_proj.weight",
    "down": "mlp.experts.{expert}.down_proj.weight",
    experts.ROUTER: "mlp.gate.weight",
}
COUNTS = ("num_experts", "num_local_experts")
"""The number of experts as transformers 4 and as transformers 5 write it."""
FIELDS = {
    *COUNTS,
    "use_sliding_window",
    "sliding_window",
    "attention_bias",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    # These ask transformers to add a loss that balances experts. sdjax adds none.
    "output_router_logits",
    "router_aux_loss_coef",
}


def from_hf(fields: hf.Fields, **runtime: Any) -> ModelConfig:
    """Returns the ModelConfig of a config.json."""
    hf.check_known(fields, FIELDS)
    sizes = hf.sizes(
        fields,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        num_key_value_heads=4,
    )
    experts.check_adapters(runtime.get("lora"))
    bias = hf.flag(fields, "attention_bias")
    # Unlike Qwen3's, a window is that of every layer, whatever max_window_layers says.
    window = hf.window(fields, 4096) if hf.flag(fields, "use_sliding_window") else None
    kind = LayerKind(window=window, rope=hf.rope(fields))
    return ModelConfig(
        family="qwen3_moe",
        layers=(kind,) * sizes["num_layers"],
        experts=_experts(fields),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        **sizes,
        **runtime,
    )


def _experts(fields: hf.Fields) -> Experts:
    """Returns the sizes of the experts. Refuses dense layers among them."""
    given = {name: fields[name] for name in COUNTS if name in fields}
    if len(set(given.values())) > 1:
        hf.refuse("num_local_experts", fields["num_local_experts"], f"differs from {given}")
    name = next(iter(given), COUNTS[0])
    count = hf.whole(fields, name, 128)
    per_token = hf.whole(fields, "num_experts_per_tok", 8)
    if per_token > count:
        hf.refuse("num_experts_per_tok", per_token, f"must be at most {name} ({count})")
    step, dense = hf.whole(fields, "decoder_sparse_step", 1), fields.get("mlp_only_layers", [])
    if step != 1:
        hf.refuse("decoder_sparse_step", step, "only 1 is supported: experts in every layer")
    if dense != []:
        hf.refuse("mlp_only_layers", dense, "only [] is supported: experts in every layer")
    return Experts(
        count=count,
        per_token=per_token,
        width=hf.whole(fields, "moe_intermediate_size", 768),
        normalised=hf.flag(fields, "norm_topk_prob"),
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json."""
    how = cfg.experts
    assert how is not None
    return hf.common_fields(cfg, "Qwen3MoeForCausalLM") | {
        "attention_bias": cfg.o_bias,
        "use_sliding_window": cfg.windows[0] is not None,
        "sliding_window": cfg.windows[0],
        **dict.fromkeys(COUNTS, how.count),
        "num_experts_per_tok": how.per_token,
        "moe_intermediate_size": how.width,
        "norm_topk_prob": how.normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


FAMILY = Family(
    from_hf=from_hf,
    to_hf=to_hf,
    names=NAMES,
    layer_shapes=experts.layer_shapes,
    outputs=layer.OUTPUTS | {experts.ROUTER: 1},
    mlp=experts.mlp,
)
