"""Which fields of config.json are read, harmless or refused, and the values of those that are read.

A field that changes what the model computes is read or refused, never ignored.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from sdjax.errors import UserError

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

# These change what the model computes, unless they have one of these values.
NEUTRAL: dict[str, tuple] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "bias": (False,),
    "attention_dropout": (0.0,),
    "attn_pdrop": (0.0,),
    "embd_pdrop": (0.0,),
    "hidden_dropout": (0.0,),
    "resid_pdrop": (0.0,),
    "partial_rotary_factor": (1.0,),
    "rotary_pct": (1.0,),
    "rope_interleaved": (False,),
    "use_rope": (True,),
    "use_mrope": (False,),
    "use_dynamic_ntk": (False,),
    "use_logn_attn": (False,),
    "alibi": (False,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "use_sliding_window": (False,),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "num_nextn_predict_layers": (0,),
    "quantization_config": ({},),
    "pruned_heads": ({},),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
}

# These do not change what a decoder-only model computes, whatever their values.
HARMLESS = {
    # names, versions and types
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
    "name_or_path",
    "transformers_version",
    "transformers.js_config",
    "is_llama_config",
    "unsloth_fixed",
    "use_bfloat16",
    # how the same function is computed
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "pretraining_tp",
    "torchscript",
    "use_cache",
    "use_flash_attn",
    "use_flash_attention_2",
    # training from the start, and other heads and losses
    "classifier_dropout",
    "finetuning_task",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "tf_legacy_loss",
    # what a call returns
    "cross_attention_hidden_size",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "use_return_dict",
    # the tokenizer
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "mask_token_id",
    "max_sequence_length",
    "model_max_length",
    "pad_token_id",
    "prefix",
    "sep_token_id",
    "tokenizer_class",
    "unk_token_id",
    # generation, which the configs of sdjax set
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    # read by the families that have windows; without a window they have no effect
    "max_window_layers",
}

# transformers distinguishes null from a missing field here: null is one head of keys for each head
# of queries, and no window.
NULL_HAS_A_MEANING = {"num_key_value_heads", "sliding_window"}


def without_null(hf: Fields) -> dict[str, Any]:
    """Returns the fields whose value is not null, because null means that a field is absent."""
    return {k: v for k, v in hf.items() if v is not None or k in NULL_HAS_A_MEANING}


def check_known(hf: Fields, read: Collection[str] = ()) -> None:
    """Raises UserError for a field that may change the model, and that no code reads.

    `read` are the fields that the family reads in addition to COMMON.
    """
    for name, value in hf.items():
        if name in COMMON or name in HARMLESS or name in read or value is None:
            continue
        if name in NEUTRAL:
            if not any(_same(value, neutral) for neutral in NEUTRAL[name]):
                refuse(name, value, f"only {NEUTRAL[name][0]!r} is supported")
        elif name == "layer_types":
            if not isinstance(value, list) or set(map(str, value)) - {"full_attention"}:
                refuse(name, value, f"{hf.get('model_type')!r} has full_attention only")
        elif not name.startswith("_") and not name.endswith("version"):
            family = hf.get("model_type")
            refuse(name, value, f"unknown for model_type {family!r}; remove it if it has no effect")


def _same(value: object, neutral: object) -> bool:
    """Returns whether two JSON values are equal. True and 1 are not."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def refuse(name: str, value: object, why: str) -> NoReturn:
    """Raises a UserError that names a field of config.json, its value and what is wrong."""
    shown = repr(value)
    shown = shown if len(shown) <= 100 else shown[:100] + "..."
    raise UserError(f"config.json: {name} is {shown}: {why}")


def whole(
    hf: Fields, name: str, default: int | None = None, least: int = 1, most: int = 2**40
) -> int:
    """Returns a whole number from `least` to `most`. Without a default, the field must be there."""
    value = _value(hf, name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        refuse(name, value, f"must be a whole number of at least {least}")
    if value > most:
        refuse(name, value, f"must be at most {most:,}")
    return value


def number(hf: Fields, name: str, default: float | None = None, where: str = "") -> float:
    """Returns a positive, finite number. Errors name the field `where` + `name`."""
    value = _value(hf, name, default)
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= sys.float_info.max:
        refuse(where + name, value, "must be a positive number")
    return float(value)


def flag(hf: Fields, name: str, default: bool = False) -> bool:
    """Returns true or false."""
    value = _value(hf, name, default)
    if not isinstance(value, bool):
        refuse(name, value, "must be true or false")
    return value


def table(hf: Fields, name: str) -> dict[str, Any]:
    """Returns a JSON object; {} if there is none."""
    value = hf.get(name)
    if value is not None and not isinstance(value, dict):
        refuse(name, value, "must be a JSON object")
    return dict(value or {})


def _value(hf: Fields, name: str, default: Any) -> Any:
    value = hf.get(name)
    value = default if value is None else value
    if value is None:
        raise UserError(f"config.json: {name} is missing: is this a model folder?")
    return value
