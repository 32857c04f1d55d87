"""Every field of a family's config.json is used, refused, or known to have no effect."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import marks
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.errors import UserError
from sdjax.models.families import registry
from sdjax.models.files import hf, weights
from sdjax.models.network import transformer

SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 4}

# Fields that change what the same weights compute: what the base has, and the change.
THETA = ({}, {"rope_theta": 99.0})
EPS = ({}, {"rms_norm_eps": 0.1})
TIED = ({}, {"tie_word_embeddings": True})
BIAS = ({"attention_bias": True}, {"attention_bias": False})
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.2}
YARN["original_max_position_embeddings"] = 64
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
LLAMA3["original_max_position_embeddings"] = 32


def scaled(base: dict, **change) -> tuple[dict, dict]:
    return {"rope_parameters": base}, {"rope_parameters": base | change}


COMMON = {
    "rope_theta": THETA,
    "rms_norm_eps": EPS,
    "tie_word_embeddings": TIED,
}
ROPE = {
    "rope_parameters.rope_theta": scaled({"rope_theta": 1e4}, rope_theta=99.0),
    "rope_parameters linear": scaled({}, rope_type="linear", factor=3.0),
    "rope_parameters llama3": scaled({}, **LLAMA3),
    "rope_parameters.low_freq_factor": scaled(LLAMA3, low_freq_factor=0.2),
    "rope_parameters.high_freq_factor": scaled(LLAMA3, high_freq_factor=8.0),
    "rope_parameters yarn": scaled({}, **YARN),
    "rope_parameters.factor": scaled(YARN, factor=2.0),
    "rope_parameters.attention_factor": scaled(YARN, attention_factor=2.0),
    "rope_parameters.beta_fast": scaled(YARN, beta_fast=8.0),
    "rope_parameters.beta_slow": scaled(YARN, beta_slow=1.0),
    "rope_parameters.truncate": scaled(YARN, truncate=False),
    "rope_parameters.mscale": scaled(YARN, mscale=1.0, mscale_all_dim=3.0),
    "rope_parameters.original_max_position_embeddings": scaled(
        YARN, original_max_position_embeddings=20
    ),
    "rope_scaling": ({}, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "original_max_position_embeddings": (
        {"rope_parameters": YARN},
        {"original_max_position_embeddings": 20},
    ),
    "max_position_embeddings": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"max_position_embeddings": 16},
    ),
}
QWEN_WINDOWS = {
    "use_sliding_window": ({"layer_types": None, "max_window_layers": 1}, WINDOW),
    "sliding_window": ({**WINDOW, "max_window_layers": 1}, {"sliding_window": 2}),
    "max_window_layers": ({**WINDOW, "max_window_layers": 1}, {"max_window_layers": 0}),
    "layer_types": (WINDOW, {"layer_types": [SLIDING, FULL]}),
}
FULL_YARN = {"rope_parameters": {FULL: {**YARN, "rope_theta": 500_000.0}}}
SLIDING_YARN = {"rope_parameters": {SLIDING: {**YARN, "rope_theta": 500_000.0}}}
MIXED = {"layer_types": [SLIDING, FULL], "sliding_window": 4}
OLMO3 = {
    "sliding_window": (MIXED, {"sliding_window": 2}),
    "layer_types": (MIXED, {"layer_types": [FULL, SLIDING]}),
    "rope_parameters full": (MIXED, FULL_YARN),
    "rope_parameters sliding": (MIXED, SLIDING_YARN),
    "rope_scaling": (MIXED, {"rope_scaling": YARN}),
}
EFFECTS = {
    "llama": COMMON | ROPE | {"attention_bias": BIAS},
    "qwen2": COMMON | ROPE | QWEN_WINDOWS,
    "qwen3": COMMON | ROPE | QWEN_WINDOWS | {"attention_bias": BIAS},
    "olmo2": COMMON | ROPE | {"attention_bias": BIAS},
    "olmo3": COMMON | OLMO3 | {"attention_bias": BIAS},
}
# Fields that the shapes of the weights must fit.
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
    "auto_map": {"AutoModel": "code.Model"},
}
REFUSED_ROPE = (
    {"rope_type": "longrope", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "default", "mrope_section": [1, 2]},
    {"rope_type": "linear"},
    {"rope_type": "llama3", "factor": 2.0},
    {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
)


def logits(cfg, params):
    """Runs op by op: compiling each of these configs would take longer than running it."""
    tokens = np.random.default_rng(3).integers(0, cfg.vocab_size, (1, 12)).astype(np.int32)
    positions = jnp.arange(12)[None]
    with jax.disable_jit():
        model = nnx.merge(tiny.graph(cfg), params)
        hidden = transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))
        return np.asarray(transformer.logits(hidden, transformer.head_weight(model)))


def without(params: nnx.State, cfg) -> nnx.State:
    """Returns the params that a config has."""
    wanted = {path for path, _ in nnx.to_flat_state(weights.abstract_params(cfg))}
    return nnx.from_flat_state([(p, v) for p, v in nnx.to_flat_state(params) if p in wanted])


@pytest.mark.parametrize("family", marks.heavy_but(["qwen3"], tiny.FAMILIES))
def test_every_field_that_changes_the_function_changes_the_output(family, tmp_path):
    bases: dict[str, tuple] = {}
    for name, (base, change) in EFFECTS[family].items():
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
    for name, value in SHAPES.items():
        cfg = registry.from_hf(tiny.config(family, **{name: value}))
        with pytest.raises(UserError, match=r"do not fit config\.json"):
            weights.load(folder, cfg)


def of_transformers(family):
    """Returns the fields of transformers' own config, and of a config of no family."""
    import transformers

    config = transformers.CONFIG_MAPPING[family]()
    return config.to_dict(), transformers.PreTrainedConfig().to_dict()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_field_of_the_transformers_config_is_accounted_for(family):
    accounted = {name.split(".")[0].split(" ")[0] for name in EFFECTS[family]}
    accounted |= set(SHAPES) | set(REFUSED) | hf.HARMLESS
    accounted |= {"model_type", "rope_parameters", "max_position_embeddings"}
    fields, common = of_transformers(family)
    own = fields.keys() - common.keys()
    assert own <= accounted, own - accounted


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_defaults_are_those_of_transformers(family):
    written, _ = of_transformers(family)
    ours = registry.from_hf(written)
    sizes = ("vocab_size", "hidden_size", "intermediate_size")
    layers = ("num_hidden_layers", "num_attention_heads")
    least = {k: written[k] for k in (*sizes, *layers)} | {"model_type": family}
    assert registry.from_hf(least) == ours


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_field_is_refused_by_name(family, name):
    with pytest.raises(UserError, match=name) as error:
        registry.from_hf(tiny.config(family, **{name: REFUSED[name]}))
    assert "\n" not in str(error.value)


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
    assert registry.from_hf(tiny.config("llama", **seen)) == registry.from_hf(tiny.config("llama"))


def test_an_unknown_model_type_names_those_known():
    with pytest.raises(UserError, match=r"mixtral.*llama, qwen2, qwen3, olmo2, olmo3"):
        registry.from_hf({"model_type": "mixtral"})


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_config_written_and_read_again_is_the_same(family):
    for base, change in EFFECTS[family].values():
        cfg = registry.from_hf(tiny.config(family, **{**base, **change}))
        assert registry.from_hf(registry.to_hf(cfg)) == cfg
