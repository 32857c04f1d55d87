"""Every field of a family's config.json is used, refused, or known to have no effect."""

from __future__ import annotations

import copy

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.errors import UserError
from sdjax.models.families import registry
from sdjax.models.files import fields as fields_of
from sdjax.models.files import weights
from sdjax.models.network import transformer

# Fields that must agree with the shapes of the weights.
SHAPES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
REFUSED = {
    "hidden_act": "gelu",
    "attention_dropout": 0.1,
    "mlp_bias": True,
    "partial_rotary_factor": 0.5,
    "quantization_config": {"bits": 4},
    "attn_logit_softcapping": 50.0,
    "logit_scale": 0,
    "use_rope": False,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": True,
    "hidden_activation": "relu",
}
REFUSED_ROPE = (
    {"rope_type": "longrope", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "default", "mrope_section": [1, 2]},
    {"rope_type": "linear"},
    {"rope_type": "llama3", "factor": 2.0},
    {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
)


def not_reading(name):
    """Returns the families for which a field of config.json has no effect but to be refused."""
    return [f for f in tiny.FAMILIES if name not in family_cases.of(f).effects]


def logits(cfg, params):
    """Returns logits, computed op by op, because compiling takes longer than running."""
    tokens = np.random.default_rng(3).integers(0, cfg.vocab_size, (1, 12)).astype(np.int32)
    positions = jnp.arange(12)[None]
    with jax.disable_jit():
        model = nnx.merge(tiny.graph(cfg), params)
        hidden = transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))
        return np.asarray(transformer.logits(hidden, transformer.head_weight(model)))


def without(params: nnx.State, cfg) -> nnx.State:
    """Returns those of the params that a model of the config has."""
    wanted = {path for path, _ in nnx.to_flat_state(weights.abstract_params(cfg))}
    return nnx.from_flat_state([(p, v) for p, v in nnx.to_flat_state(params) if p in wanted])


@pytest.mark.heavy
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_field_that_changes_the_function_changes_the_output(family, tmp_path):
    bases: dict[str, tuple] = {}
    for name, (base, change) in family_cases.of(family).effects.items():
        key = repr(base)
        if key not in bases:
            fields = tiny.config(family, **base)
            cfg, _, params = tiny.load(
                tiny.model_folder(tmp_path / str(len(bases)), family, **base), remat="none"
            )
            bases[key] = (fields, params, logits(cfg, params))
        fields, params, before = bases[key]
        cfg = registry.from_hf(fields | change, compute_dtype="float32", remat="none")
        after = logits(cfg, without(params, cfg))
        assert np.abs(after - before).max() > 1e-3, name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_field_of_size_that_does_not_fit_the_weights_is_an_error(family, tmp_path):
    folder = tiny.model_folder(tmp_path / "model", family)
    for name, value in (SHAPES | family_cases.of(family).sizes).items():
        if value is None:
            continue
        changed = {name: value}
        if name == "num_local_experts":  # the same number in another spelling
            changed["num_experts"] = None
        cfg = registry.from_hf(tiny.config(family, **changed))
        with pytest.raises(UserError, match=r"do not fit config\.json"):
            weights.load(folder, cfg)


def of_transformers(family):
    """Returns the fields of transformers' config of a family, and those of every config."""
    import transformers

    config = transformers.CONFIG_MAPPING[family]()
    return config.to_dict(), transformers.PreTrainedConfig().to_dict()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_field_of_the_transformers_config_is_accounted_for(family):
    accounted = {name.split(".")[0].split(" ")[0] for name in family_cases.of(family).effects}
    accounted |= set(SHAPES) | set(REFUSED) | fields_of.HARMLESS | set(fields_of.NEUTRAL)
    own_cases = family_cases.of(family)
    accounted |= {*own_cases.sizes, *own_cases.refused, *own_cases.without_effect}
    accounted |= {"model_type", "rope_parameters", "max_position_embeddings"}
    fields, common = of_transformers(family)
    # A name with an underscore is private to transformers, which does not read it back.
    own = {name for name in fields if not name.startswith("_")} - common.keys()
    assert own <= accounted, own - accounted


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_defaults_are_those_of_transformers(family):
    written, _ = of_transformers(family)
    ours = registry.from_hf(written)
    sizes = ("vocab_size", "hidden_size", "intermediate_size")
    layers = ("num_hidden_layers", "num_attention_heads")
    least = {k: written[k] for k in (*sizes, *layers)} | {"model_type": family}
    assert registry.from_hf(least) == ours


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for name in REFUSED for family in not_reading(name)]
)
def test_an_unsupported_field_is_refused_by_name(family, name):
    with pytest.raises(UserError, match=name) as error:
        registry.from_hf(tiny.config(family, **{name: REFUSED[name]}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_family_refuses_and_ignores_what_its_cases_say(family):
    cases, fields = family_cases.of(family), tiny.config(family)
    for name, value in cases.refused.items():
        with pytest.raises(UserError, match=name):
            registry.from_hf(fields | {name: value})
    assert registry.from_hf(fields | cases.without_effect) == registry.from_hf(fields)


@pytest.mark.parametrize("given", REFUSED_ROPE, ids=repr)
def test_an_unsupported_rotary_embedding_is_refused_by_name(given):
    for name in ("rope_parameters", "rope_scaling"):
        with pytest.raises(UserError, match=name):
            registry.from_hf(tiny.config("llama", **{name: given}))


def test_fields_without_meaning_to_the_model_are_accepted():
    seen = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"dtype": "q4"},
        "_attn_implementation_autoset": True,
        "unsloth_version": "2025.1",
        "use_mrope": False,
        "attention_dropout": 0,
        "torch_dtype": "bfloat16",
    }
    for family in tiny.FAMILIES:
        fields = tiny.config(family)
        assert registry.from_hf(fields | seen) == registry.from_hf(fields)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fields_of_older_configs_are_accepted(family):
    older = {
        "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
        "tokenizer_class": "LlamaTokenizer",
        "sep_token_id": 3,
        "num_labels": 5,
        "id2label": {"0": "good"},
        "problem_type": "regression",
        "temperature": 0.6,
        "top_k": 20,
        "do_sample": True,
        "repetition_penalty": 1.1,
        "suppress_tokens": [5],
        "torchscript": True,
        "pruned_heads": {},
        "pretraining_tp": 2,
        "output_attentions": True,
        "task_specific_params": {"a": 1},
        "layer_types": ["full_attention", "full_attention"],
        "use_sliding_window": False,
        "embedding_multiplier": 1.0,
        "hidden_act": "swish",
    }
    full = {"layer_types": ["full_attention", "full_attention"], "sliding_window": None}
    fields = tiny.config(family, **full)
    assert registry.from_hf(fields | older) == registry.from_hf(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_scale", 0),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", True),
        ("attention_multiplier", 1.0),
        ("query_pre_attn_scalar", 1),
        ("final_logit_softcapping", 30.0),
        ("partial_rotary_factor", 0),
        ("is_causal", False),
        ("some_switch", True),
        ("some_switch", False),
        ("some_count", 1),
    ],
)
def test_a_field_whose_neutral_value_is_another_is_refused(name, value):
    # A family that reads the field may take the value, but never true for a number.
    for family in tiny.FAMILIES if value is True else not_reading(name):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            registry.from_hf(tiny.config(family, **{name: value}))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_null_is_read_as_transformers_reads_it(family):
    import transformers

    reader = transformers.CONFIG_MAPPING[family]
    for heads in ({}, {"num_key_value_heads": 4}):
        fields = reader.from_dict(tiny.config(family, **heads)).to_dict()
        for name in fields.keys() - {"model_type"}:
            given = {**fields, name: None}
            try:
                ours = registry.from_hf(given)
            except UserError as error:
                # No default fits any model; and a layer type may need a window.
                assert name in {*SHAPES, "sliding_window"}, error
                continue
            try:
                theirs = reader.from_dict(copy.deepcopy(given)).to_dict()
            except Exception:  # transformers refuses this null, in an error of its own kind
                continue
            assert registry.from_hf(theirs) == ours, name


def test_an_unknown_model_type_names_those_known():
    with pytest.raises(UserError, match=f"mixtral.*{', '.join(registry.FAMILIES)}"):
        registry.from_hf({"model_type": "mixtral"})


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_config_written_and_read_again_is_the_same(family):
    for base, change in family_cases.of(family).effects.values():
        cfg = registry.from_hf(tiny.config(family, **{**base, **change}))
        assert registry.from_hf(registry.to_hf(cfg)) == cfg


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partial_rotary_factor": 0.4}, "partial_rotary_factor is 0.4: must leave an even number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear': phi3"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor is None: must be 4 positive"),
        (
            {"rope_parameters": family_cases.LONGROPE | {"long_factor": [1.0, 2.0, "x", 3.0]}},
            "rope_parameters.long_factor",
        ),
        (
            {"rope_parameters": family_cases.LONGROPE, "partial_rotary_factor": 0.5},
            "short_factor.*must be 2 positive",
        ),
        ({"rope_parameters": family_cases.LONGROPE | {"beta_fast": 2}}, "beta_fast is 2: unknown"),
    ],
)
def test_a_rotary_embedding_of_phi3_that_cannot_be_read_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        registry.from_hf(tiny.config("phi3", **given))


def test_longrope_takes_its_factors_by_the_context_of_the_run():
    fields = tiny.config("phi3", **family_cases.LONG)

    def of(context, **changes):
        cfg = registry.from_hf(fields | changes, context=context)
        return cfg.layers[0].rope.scaling.use_long, cfg.max_positions

    assert [of(8), of(9), of(900), of(None)] == [(False, 8), (True, 9), (True, 512), (True, 512)]
    with pytest.raises(UserError, match=r"set model\.context to at most 8 tokens for the short"):
        of(0)
    assert of(0, original_max_position_embeddings=512) == (False, 512)  # no row is longer
    assert registry.from_hf(tiny.config("qwen3"), context=8).max_positions == 8


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types.*window is 4096, for ev"),
        ("ministral3", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is None"),
        (
            "ministral3",
            {"rope_parameters": {"llama_4_scaling_beta": 0.1}},
            "original_max_position_embeddings is missing",
        ),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": -1}},
            "rope_parameters.llama_4_scaling_beta is -1: must be a positive number",
        ),
    ],
)
def test_fields_of_a_family_that_contradict_each_other_are_refused(family, given, message):
    with pytest.raises(UserError, match=message):
        registry.from_hf(tiny.config(family, **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"no_rope_layers": [1]}, r"no_rope_layers is \[1\]: must have num_hidden_layers \(2\)"),
        ({"no_rope_layers": [1, 2]}, "no_rope_layers is 2: must be 1"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0: must be a whole number"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window is None: layer_types has"),
    ],
)
def test_layers_of_smollm3_that_cannot_be_read_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        registry.from_hf(tiny.config("smollm3", **given))
