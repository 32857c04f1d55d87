"""The cases of each model family, for every test of families. A new family adds an entry to CASES.

`tiny.config` holds the sizes that all cases share.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Cases:
    """What the tests try with one family. All dicts are fields of config.json."""

    parity: dict[str, dict]
    """Models to compare with transformers, by name: the fields that differ from `tiny.config`.

    Together they use every feature of the family. A case is mostly compilation, so let several
    features share one. The first case is the most usual one: that of two families also runs without
    `-m heavy`. No gradient may be zero in theory, because rounding is all that is left of it. A
    bias of keys in a layer without rotary embedding has such a gradient.
    """
    effects: dict[str, tuple[dict, dict]]
    """For each field of config.json that changes what the same weights compute: a base, and the
    fields to change. The output must change. The key is the field, perhaps with more words."""
    sizes: dict[str, int | None] = field(default_factory=dict)
    """The family's own fields that must agree with the shapes of the weights, each with a value
    that does not fit; None: the field that other families have has no effect in this one."""
    refused: dict[str, object] = field(default_factory=dict)
    """The family's own fields of which one value is supported, each with another."""
    without_effect: dict[str, object] = field(default_factory=dict)
    """The family's own fields that change no output, each with a value."""


def of(family: str) -> Cases:
    """Returns the cases of a family. Fails with a remedy if there are none."""
    assert family in CASES, (
        f"{family} has no test cases: add your family here: CASES in tests/models/family_cases.py"
    )
    return CASES[family]


SLIDING, FULL = "sliding_attention", "full_attention"

# Parts of parity cases.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 8.0,
    "beta_slow": 0.5,
}
YARN_4 = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 24}
TIED = {"tie_word_embeddings": True, "vocab_size": 263}
ONE_KV_HEAD = {"num_key_value_heads": 1, "head_dim": 24}


def qwen_cases(bias: dict) -> dict[str, dict]:
    window = {"use_sliding_window": True, "sliding_window": 5}
    return {
        "grouped_untied_window_in_deep_layers_theta": {
            "max_window_layers": 1,
            "rope_parameters": {"rope_theta": 5_000.0},
            **window,
        },
        "tied_odd_vocabulary_one_kv_head_wide_heads_linear_theta": {
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
            "rope_theta": 5_000.0,
            **TIED,
            **ONE_KV_HEAD,
            **bias,
        },
        "window_everywhere_yarn": {
            "layer_types": [SLIDING, SLIDING],
            "rope_scaling": YARN_4,
            **window,
        },
        "all_kv_heads_llama3_eps": {
            "num_key_value_heads": 4,
            "rope_parameters": LLAMA3,
            "rms_norm_eps": 1e-3,
        },
    }


# Parts of effects: what the base has, and the change.
WINDOW = {"use_sliding_window": True, "sliding_window": 4}
BIAS = ({"attention_bias": True}, {"attention_bias": False})
YARN_BASE = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 0.2,
    "original_max_position_embeddings": 64,
}
LLAMA3_BASE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}


def scaled(base: dict, **change) -> tuple[dict, dict]:
    return {"rope_parameters": base}, {"rope_parameters": base | change}


COMMON = {
    "rope_theta": ({}, {"rope_theta": 99.0}),
    "rms_norm_eps": ({}, {"rms_norm_eps": 0.1}),
    "tie_word_embeddings": ({}, {"tie_word_embeddings": True}),
}
ROPE = {
    "rope_parameters.rope_theta": scaled({"rope_theta": 1e4}, rope_theta=99.0),
    "rope_parameters linear": scaled({}, rope_type="linear", factor=3.0),
    "rope_parameters llama3": scaled({}, **LLAMA3_BASE),
    "rope_parameters.low_freq_factor": scaled(LLAMA3_BASE, low_freq_factor=0.2),
    "rope_parameters.high_freq_factor": scaled(LLAMA3_BASE, high_freq_factor=8.0),
    "rope_parameters yarn": scaled({}, **YARN_BASE),
    "rope_parameters.factor": scaled(YARN_BASE, factor=2.0),
    "rope_parameters.attention_factor": scaled(YARN_BASE, attention_factor=2.0),
    "rope_parameters.beta_fast": scaled(YARN_BASE, beta_fast=8.0),
    "rope_parameters.beta_slow": scaled(YARN_BASE, beta_slow=1.0),
    "rope_parameters.truncate": scaled(YARN_BASE, truncate=False),
    "rope_parameters.mscale": scaled(YARN_BASE, mscale=1.0, mscale_all_dim=3.0),
    "rope_parameters.original_max_position_embeddings": scaled(
        YARN_BASE, original_max_position_embeddings=20
    ),
    "rope_scaling": ({}, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "original_max_position_embeddings": (
        {"rope_parameters": YARN_BASE},
        {"original_max_position_embeddings": 20},
    ),
    "max_position_embeddings": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        {"max_position_embeddings": 16},
    ),
}
QWEN_WINDOWS = {
    "use_sliding_window": ({"layer_types": None, "max_window_layers": 1}, WINDOW),
    "sliding_window": ({**WINDOW, "max_window_layers": 1}, {"sliding_window": 2}),
    "max_window_layers": ({**WINDOW, "max_window_layers": 1}, {"max_window_layers": 0}),
    "layer_types": (WINDOW, {"layer_types": [SLIDING, FULL]}),
}
FULL_YARN = {"rope_parameters": {FULL: {**YARN_BASE, "rope_theta": 500_000.0}}}
SLIDING_YARN = {"rope_parameters": {SLIDING: {**YARN_BASE, "rope_theta": 500_000.0}}}
MIXED = {"layer_types": [SLIDING, FULL], "sliding_window": 4}
OLMO3 = {
    "sliding_window": (MIXED, {"sliding_window": 2}),
    "layer_types": (MIXED, {"layer_types": [FULL, SLIDING]}),
    "rope_parameters full": (MIXED, FULL_YARN),
    "rope_parameters sliding": (MIXED, SLIDING_YARN),
    "rope_scaling": (MIXED, {"rope_scaling": YARN_BASE}),
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.7,
}
WINDOW_EVERYWHERE = {"sliding_window": ({"sliding_window": 4}, {"sliding_window": 2})}
GROWTH = {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 5}
MINISTRAL3 = {
    "rope_theta": ({"rope_parameters": {"rope_type": "default"}}, {"rope_theta": 99.0}),
    "rope_parameters": ({"rope_parameters": {"rope_type": "default"}}, {"rope_parameters": None}),
    "rope_parameters.llama_4_scaling_beta": scaled(YARN_BASE | GROWTH, llama_4_scaling_beta=0.2),
    "rope_parameters llama_4_scaling_beta of no scaling": scaled({}, **GROWTH),
    "original_max_position_embeddings of the growth": (
        {"rope_parameters": YARN_BASE | GROWTH},
        {"original_max_position_embeddings": 3},
    ),
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 900.0,
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [1.5, 2.0, 4.0, 9.0],
}
LONG = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}
SHORT = {**LONG, "max_position_embeddings": 64, "original_max_position_embeddings": 64}
PHI3 = {
    "partial_rotary_factor": ({}, {"partial_rotary_factor": 0.5}),
    "rope_parameters.partial_rotary_factor": scaled({}, partial_rotary_factor=0.75),
    "rope_scaling": ({}, {"rope_scaling": {**LONGROPE, "type": "su", "rope_type": None}}),
    "rope_parameters.rope_theta": scaled({"rope_theta": 1e4}, rope_theta=99.0),
    "rope_parameters.long_factor": (
        LONG,
        {"rope_parameters": LONGROPE | {"long_factor": [9.0, 4.0, 2.0, 1.5]}},
    ),
    "rope_parameters.short_factor": (
        SHORT,
        {"rope_parameters": LONGROPE | {"short_factor": [9.0, 4.0, 2.0, 1.5]}},
    ),
    "rope_parameters.factor": (LONG, {"rope_parameters": LONGROPE | {"factor": 1.5}}),
    "rope_parameters.attention_factor": (
        LONG,
        {"rope_parameters": LONGROPE | {"attention_factor": 2.0}},
    ),
    "original_max_position_embeddings": (LONG, {"original_max_position_embeddings": 600}),
    "max_position_embeddings": (LONG, {"max_position_embeddings": 20}),
}

NOPE = {"no_rope_layers": [0, 1]}
SMOLLM3 = {
    "no_rope_layers": ({}, {"no_rope_layers": [1, 0]}),
    "no_rope_layer_interval": ({}, {"no_rope_layer_interval": 2}),
    "use_sliding_window": ({**NOPE, "sliding_window": 4}, {"use_sliding_window": True}),
    "sliding_window": ({**WINDOW, **NOPE}, {"sliding_window": 2}),
    "layer_types": ({**WINDOW, **NOPE}, {"layer_types": [FULL, SLIDING]}),
}

THETA_OF_EACH = {FULL: {"rope_theta": 5_000.0}, SLIDING: {"rope_theta": 90.0}}
GEMMA3 = {
    "sliding_window": (MIXED, {"sliding_window": 2}),
    "sliding_window_pattern": ({"sliding_window": 4}, {"sliding_window_pattern": 2}),
    "layer_types": (MIXED, {"layer_types": [FULL, SLIDING]}),
    "query_pre_attn_scalar": (MIXED, {"query_pre_attn_scalar": 2}),
    "rope_theta": (MIXED, {"rope_theta": 99.0}),
    "rope_local_base_freq": (MIXED, {"rope_local_base_freq": 99.0}),
    "rope_parameters full": (MIXED, {"rope_parameters": {FULL: {**YARN_BASE, "rope_theta": 1e6}}}),
    "rope_parameters sliding": (MIXED, {"rope_parameters": {SLIDING: YARN_BASE}}),
    "rope_scaling": (MIXED, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
}

CASES = {
    "llama": Cases(
        parity={
            "grouped_untied_theta": {"rope_theta": 500_000.0},
            "yarn_eps": {"rope_parameters": YARN, "rms_norm_eps": 1e-3},
            "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear_theta": {
                "attention_bias": True,
                "rope_scaling": {"type": "linear", "factor": 4.0},
                "rope_theta": 900.0,
                **TIED,
                **ONE_KV_HEAD,
            },
            "all_kv_heads_llama3": {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
        },
        effects=COMMON | ROPE | {"attention_bias": BIAS},
    ),
    "qwen2": Cases(
        parity=qwen_cases({}),
        effects=COMMON | ROPE | QWEN_WINDOWS,
    ),
    "qwen3": Cases(
        parity=qwen_cases({"attention_bias": True}),
        effects=COMMON | ROPE | QWEN_WINDOWS | {"attention_bias": BIAS},
    ),
    "olmo2": Cases(
        parity={
            "grouped_untied_theta": {"rope_theta": 500_000.0},
            "yarn_eps": {"rope_scaling": YARN_4, "rms_norm_eps": 1e-3},
            "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear": {
                "attention_bias": True,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                **TIED,
                **ONE_KV_HEAD,
            },
            "all_kv_heads_llama3": {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
        },
        effects=COMMON | ROPE | {"attention_bias": BIAS},
    ),
    "olmo3": Cases(
        parity={
            "window_and_full_yarn": {
                "layer_types": [SLIDING, FULL],
                "sliding_window": 5,
                "rope_parameters": {
                    FULL: YARN,
                    SLIDING: {"rope_type": "default", "rope_theta": 2e3},
                },
            },
            "types_by_depth_yarn_4": {
                "num_hidden_layers": 4,
                "sliding_window": 7,
                "rope_theta": 500_000.0,
                "rope_scaling": {**YARN_4, "rope_type": "yarn", "attention_factor": 1.3},
            },
            "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear_in_windows": {
                "attention_bias": True,
                "sliding_window": 4,
                "rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}},
                **TIED,
                **ONE_KV_HEAD,
            },
            "all_kv_heads_llama3": {
                "num_key_value_heads": 4,
                "layer_types": [FULL, FULL],
                "rope_parameters": {FULL: LLAMA3},
            },
        },
        effects=COMMON | OLMO3 | {"attention_bias": BIAS},
    ),
    "granite": Cases(
        parity={
            "all_multipliers_theta": {**GRANITE, "rope_theta": 5_000.0},
            "embedding_and_logits_tied_yarn_eps": {
                "embedding_multiplier": 0.7,
                "logits_scaling": 0.3,
                "tie_word_embeddings": True,
                "rope_parameters": YARN,
                "rms_norm_eps": 1e-3,
            },
            "whole_numbers_tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear": {
                "embedding_multiplier": 12,
                "logits_scaling": 8,
                "attention_bias": True,
                "rope_scaling": {"type": "linear", "factor": 4.0},
                **TIED,
                **ONE_KV_HEAD,
            },
            "attention_all_kv_heads_llama3": {
                "attention_multiplier": 0.0625,
                "num_key_value_heads": 4,
                "rope_parameters": LLAMA3,
            },
            "residual_four_layers": {"residual_multiplier": 0.22, "num_hidden_layers": 4},
            "no_multiplier": {},
        },
        effects=COMMON
        | ROPE
        | {"attention_bias": BIAS}
        | {name: ({}, {name: value}) for name, value in GRANITE.items()},
    ),
    "mistral": Cases(
        parity={
            "window_theta": {"sliding_window": 5, "rope_theta": 5_000.0},
            "default_window_linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            "no_window_yarn_eps": {
                "sliding_window": None,
                "rope_scaling": YARN_4,
                "rms_norm_eps": 1e-3,
            },
            "window_tied_odd_vocabulary_one_kv_head_wide_heads": {
                "sliding_window": 9,
                "layer_types": [SLIDING, SLIDING],
                **TIED,
                **ONE_KV_HEAD,
            },
            "all_kv_heads_llama3": {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
            "short_window_four_layers": {"sliding_window": 2, "num_hidden_layers": 4},
        },
        effects=COMMON | ROPE | WINDOW_EVERYWHERE,
    ),
    "ministral3": Cases(
        parity={
            "yarn_growth": {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.4}},
            "defaults": {},
            "window_yarn_mscale_growth_tied_odd_vocabulary_one_kv_head_wide_heads": {
                "sliding_window": 6,
                "rope_parameters": {
                    **YARN,
                    "llama_4_scaling_beta": 0.1,
                    "mscale": 1.0,
                    "mscale_all_dim": 2.0,
                },
                **TIED,
                **ONE_KV_HEAD,
            },
            "no_scaling_growth_eps": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e3, **GROWTH},
                "rms_norm_eps": 1e-3,
            },
            "older_spelling_growth_original_outside_four_layers": {
                "rope_scaling": {**YARN_4, "llama_4_scaling_beta": 1.5},
                "rope_theta": 5e3,
                "original_max_position_embeddings": 11,
                "num_hidden_layers": 4,
            },
            "all_kv_heads_llama3_growth": {
                "num_key_value_heads": 4,
                "rope_parameters": {**LLAMA3, "llama_4_scaling_beta": 0.4},
            },
        },
        effects=COMMON | ROPE | WINDOW_EVERYWHERE | MINISTRAL3,
    ),
    "phi3": Cases(
        parity={
            "plain_theta": {"rope_theta": 250_000.0},
            "longrope_long_tied": {**LONG, "tie_word_embeddings": True},
            "longrope_short_factor_window_eps": {
                **SHORT,
                "rope_parameters": {**LONGROPE, "factor": 4.0},
                "sliding_window": 6,
                "rms_norm_eps": 1e-3,
            },
            "partial_odd_vocabulary_tied_one_kv_head_wide_heads": {
                "partial_rotary_factor": 0.75,
                **TIED,
                **ONE_KV_HEAD,
            },
            "partial_longrope_older_spelling_all_kv_heads": {
                "partial_rotary_factor": 0.75,
                "num_key_value_heads": 4,
                "rope_theta": 5e3,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.5, 2.0],
                    "long_factor": [1.0, 3.0, 5.0],
                },
                "original_max_position_embeddings": 16,
            },
            "attention_factor_four_layers": {
                **LONG,
                "rope_parameters": {**LONGROPE, "attention_factor": 1.4},
                "num_hidden_layers": 4,
            },
        },
        effects=COMMON | WINDOW_EVERYWHERE | PHI3,
    ),
    "smollm3": Cases(
        parity={
            "every_fourth_layer_tied": {"num_hidden_layers": 4, "tie_word_embeddings": True},
            "every_second_layer_untied_theta": {
                "no_rope_layer_interval": 2,
                "rope_theta": 5_000.0,
            },
            "named_layers_window_without_rope_yarn_eps": {
                "no_rope_layers": [0, 1],
                "use_sliding_window": True,
                "sliding_window": 5,
                "rope_scaling": YARN_4,
                "rms_norm_eps": 1e-3,
            },
            "window_in_named_layers": {
                "no_rope_layers": [1, 0, 1],
                "layer_types": [SLIDING, FULL],
                "use_sliding_window": True,
                "sliding_window": 7,
            },
            "odd_vocabulary_one_kv_head_wide_heads_bias_linear_theta": {
                "attention_bias": True,
                "rope_parameters": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
                **TIED,
                **ONE_KV_HEAD,
            },
            "all_kv_heads_llama3_first_layer_not_rotated": {
                "num_key_value_heads": 4,
                "no_rope_layers": [0, 1],
                "rope_parameters": LLAMA3,
            },
        },
        effects=COMMON | ROPE | SMOLLM3 | {"attention_bias": BIAS},
    ),
    "gemma3_text": Cases(
        parity={
            "window_and_full_tied_linear": {
                "layer_types": [SLIDING, FULL],
                "sliding_window": 5,
                "query_pre_attn_scalar": 8,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "tie_word_embeddings": True,
            },
            "types_by_depth_untied_default_scale": {
                "num_hidden_layers": 6,
                "num_attention_heads": 2,
                "sliding_window": 7,
                "rope_theta": 900.0,
                "rope_local_base_freq": 90.0,
            },
            "pattern_scale_unlike_head_dim_theta_of_each_eps": {
                "num_hidden_layers": 4,
                "sliding_window_pattern": 2,
                "sliding_window": 3,
                "query_pre_attn_scalar": 21,
                "rope_parameters": THETA_OF_EACH,
                "rms_norm_eps": 1e-3,
            },
            "odd_vocabulary_one_kv_head_wide_heads_bias": {
                "attention_bias": True,
                "layer_types": [FULL, SLIDING],
                "sliding_window": 4,
                "query_pre_attn_scalar": 24,
                **TIED,
                **ONE_KV_HEAD,
            },
            "full_everywhere_all_kv_heads_llama3": {
                "num_key_value_heads": 4,
                "layer_types": [FULL, FULL],
                "rope_parameters": {FULL: LLAMA3},
            },
            "window_everywhere_yarn_in_windows": {
                "layer_types": [SLIDING, SLIDING],
                "sliding_window": 6,
                "rope_parameters": {SLIDING: YARN},
            },
        },
        effects=COMMON | GEMMA3 | {"attention_bias": BIAS},
    ),
    "qwen3_moe": Cases(
        parity={
            "grouped_untied_theta": {"rope_theta": 5_000.0},
            "shares_of_all_window_eps": {
                "norm_topk_prob": False,
                "use_sliding_window": True,
                "sliding_window": 5,
                "rms_norm_eps": 1e-3,
            },
            "tied_odd_vocabulary_one_kv_head_wide_heads_bias_linear_theta": {
                "attention_bias": True,
                "rope_scaling": {"rope_type": "linear", "factor": 3.0},
                "rope_theta": 5_000.0,
                **TIED,
                **ONE_KV_HEAD,
            },
            "one_expert_a_token_yarn": {
                "num_experts_per_tok": 1,
                "norm_topk_prob": False,
                "rope_scaling": YARN_4,
            },
            "all_experts_in_both_spellings": {
                "num_experts": 4,
                "num_local_experts": 4,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 40,
            },
            "all_kv_heads_llama3_many_experts": {
                "num_key_value_heads": 4,
                "rope_parameters": LLAMA3,
                "num_experts": 16,
                "num_experts_per_tok": 3,
            },
        },
        effects=COMMON
        | ROPE
        | {
            "attention_bias": BIAS,
            "use_sliding_window": ({}, WINDOW),
            "sliding_window": (WINDOW, {"sliding_window": 2}),
            "num_experts_per_tok": ({}, {"num_experts_per_tok": 3}),
            "norm_topk_prob": ({}, {"norm_topk_prob": False}),
        },
        sizes={
            "intermediate_size": None,
            "moe_intermediate_size": 40,
            "num_experts": 5,
            "num_local_experts": 5,
        },
        refused={"decoder_sparse_step": 2, "mlp_only_layers": [0]},
        without_effect={"output_router_logits": True, "router_aux_loss_coef": 0.5},
    ),
}
