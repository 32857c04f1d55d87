"""The text model of a checkpoint that also sees images, as transformers makes such a checkpoint."""

from __future__ import annotations

import json
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file, save_file

from sdjax.config import Lora
from sdjax.errors import UserError
from sdjax.models.files import peft, published, shards, text_part, weights
from sdjax.models.network import transformer

SIZES = {k: v for k, v in tiny.SIZES.items() if k != "tie_word_embeddings"}
TEXT = {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
TOKENS = np.arange(14)[None] * 5 % 250

# The config.json of the published models of 4 billion parameters.
OF_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "eos_token_id": [1, 106],
    "image_token_index": 262_144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny Gemma 3 with a vision tower, which transformers made, and that model."""
    if find_spec("torch") is None:
        pytest.skip("needs torch")
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config={**TEXT, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        vision_config={**vision, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=260,
        eos_token_id=[1, 106],
    )
    config._attn_implementation = "eager"
    model = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gemma3")
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return folder, model


def stored(folder):
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def logits(cfg, graph, params):
    with jax.disable_jit():
        model = nnx.merge(graph, params)
        hidden = transformer.hidden_states(model, TOKENS, jnp.arange(14)[None], None)
        return np.asarray(transformer.logits(hidden, transformer.head_weight(model)))


def of_transformers(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.heavy
def test_the_text_model_computes_what_the_whole_model_does(whole, capsys):
    folder, model = whole
    cfg, graph, params = tiny.load(folder, remat="none")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder}: the text model alone is loaded; multi_modal_projector (2 ")
    assert line.endswith("tensors) are left out") and " and vision_tower (" in line
    np.testing.assert_allclose(logits(cfg, graph, params), of_transformers(model), atol=2e-4)


@pytest.mark.heavy
def test_both_names_of_its_tensors_are_read(whole, tmp_path):
    folder, _ = whole
    arrays = stored(folder)
    newer = {
        name.replace("language_model.model.", "model.language_model."): array
        for name, array in arrays.items()
    }
    older = {
        name.replace("model.language_model.", "language_model.model."): array
        for name, array in arrays.items()
    }
    assert newer.keys() != older.keys()
    for spelling in (newer, older):
        save_file(spelling, tmp_path / shards.SINGLE)
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        _, _, params = tiny.load(tmp_path)
        found = params["layers"]["mlp_post_norm"].get_value()
        name = next(n for n in spelling if n.endswith("layers.1.post_feedforward_layernorm.weight"))
        np.testing.assert_array_equal(found[1], spelling[name])


@pytest.mark.heavy
def test_an_export_is_a_text_model_to_the_byte(whole, tmp_path):
    folder, model = whole
    cfg, _, params = tiny.load(folder)
    weights.export(params, cfg, folder, tmp_path / "out", dtype="float32")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["model_type"] == "gemma3_text" and said["architectures"] == ["Gemma3ForCausalLM"]
    assert said["eos_token_id"] == [1, 106] and "vision_config" not in said
    given = text_part.tensors_of(shards.open_folder(folder))
    written = stored(tmp_path / "out")
    assert written.keys() == given.files.keys() - {weights.HEAD}
    for name, array in written.items():
        assert array.tobytes() == given.read(name, slice(None), None).tobytes(), name
    assert weights.read_config(tmp_path / "out", compute_dtype="float32") == cfg
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    np.testing.assert_allclose(of_transformers(alone), of_transformers(model), atol=1e-5)


@pytest.mark.heavy
@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
def test_peft_puts_adapters_onto_the_text_model_alone(whole, tmp_path):
    from peft import AutoPeftModelForCausalLM

    folder, model = whole
    how = Lora(rank=2, alpha=4.0, matrices=("q", "down"))
    cfg, graph, params = tiny.load(folder, lora=how, remat="none")
    rng = np.random.default_rng(0)
    for name in ("q_b", "down_b"):
        variable = params["adapters"][name]
        drawn = 0.3 * rng.standard_normal(variable.get_value().shape)
        params["adapters"][name] = variable.replace(jnp.asarray(drawn, jnp.float32))
    peft.export(params, cfg, str(folder), folder, tmp_path / "out")
    adapted = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    assert not [n for n, _ in adapted.named_parameters() if "vision" in n and "lora" in n]
    ours, theirs = logits(cfg, graph, params), of_transformers(adapted)
    assert np.abs(theirs - of_transformers(model)).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def of_folder(folder, fields, **runtime):
    (folder / "config.json").write_text(json.dumps(fields))
    return published.config_of(str(folder), None, "model.path", **runtime)


def test_a_published_config_gets_the_defaults_of_its_text_part(tmp_path):
    cfg = of_folder(tmp_path, OF_4B, compute_dtype="bfloat16")
    assert (cfg.vocab_size, cfg.embed, cfg.mlp, cfg.num_layers) == (262_208, 2560, 10_240, 34)
    assert (cfg.num_heads, cfg.num_kv_heads, cfg.head_dim) == (8, 4, 256)
    assert cfg.windows.count(None) == 5 and set(cfg.windows) == {None, 1024}
    local, everywhere = cfg.layers[0].rope, cfg.layers[5].rope
    assert (local.theta, local.scaling) == (10_000.0, None)
    assert (everywhere.theta, everywhere.scaling.factor) == (1_000_000.0, 8.0)
    assert cfg.tie_embeddings and cfg.query_scale is None
    assert cfg.embed_scale == 50.5, "sqrt(2560) is 50.596; bfloat16 keeps 8 bits"
    assert of_folder(tmp_path, OF_4B, compute_dtype="float32").embed_scale == np.float32(2560**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama': only"),
        ({"text_config": [1]}, "text_config is .*must be a JSON object"),
        ({"text_config": {"hidden_size": "wide"}}, "hidden_size is 'wide'"),
    ],
)
def test_a_whole_model_whose_text_part_cannot_be_read_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        of_folder(tmp_path, OF_4B | change)
    assert "\n" not in str(error.value) and str(tmp_path / "config.json") in str(error.value)
