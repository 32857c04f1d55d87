"""Other programs read what sdjax writes: transformers 4 and 5, with their tokenizers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv

import family_cases
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.models.families import registry
from sdjax.models.files import weights
from sdjax.models.network import transformer

OLDER = "transformers==4.57.*"
ROTARY_4, ROTARY_5 = {"rope_theta", "rope_scaling"}, {"rope_parameters"}


def told(case):
    """Returns whether transformers 4 can be told a case.

    It scales the full layers of OLMo 3 alone, and has one base for all layers.
    """
    sliding = family_cases.SLIDING in (case.get("rope_parameters") or {})
    return not sliding and "rope_theta" not in (case.get("rope_scaling") or {})


def exported(folder, out, family, **case):
    """Returns the export of a tiny model, and what it computes of some tokens."""
    cfg, graph, params = tiny.load(tiny.model_folder(folder, family, **case), remat="none")
    weights.export(params, cfg, folder, out, dtype="float32")
    tokens = np.arange(40)[None] * 5 % 250
    hidden = transformer.hidden_states(
        nnx.merge(graph, params), tokens, jnp.arange(40)[None], jnp.ones_like(tokens)
    )
    model = nnx.merge(graph, params)
    return np.asarray(transformer.logits(hidden, transformer.head_weight(model)))[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_both_spellings_of_a_rotary_embedding_say_the_same(family):
    every = family_cases.of(family)
    named = {**every.parity, **{k: base | to for k, (base, to) in every.effects.items()}}
    for name, case in named.items():
        if not told(case):
            continue
        cfg = registry.from_hf(tiny.config(family, **case))
        written = json.loads(json.dumps(registry.to_hf(cfg)))
        for other in (ROTARY_4, ROTARY_5):
            one = {k: v for k, v in written.items() if k not in other}
            assert registry.from_hf(one) == cfg, (name, other)


def test_an_export_says_type_head_and_rotary_embedding_in_both_spellings(tmp_path):
    # transformers 5 saves rope_parameters alone, which transformers 4 does not read.
    rope = family_cases.LLAMA3
    folder = tiny.model_folder(tmp_path / "in", "llama", rope_parameters=rope)
    cfg, _, params = tiny.load(folder)
    weights.export(params, cfg, folder, tmp_path / "out", dtype="float16")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["dtype"] == said["torch_dtype"] == "float16"
    assert said["rope_theta"] == rope["rope_theta"] and said["rope_parameters"] == rope
    assert said["rope_scaling"] == {k: v for k, v in rope.items() if k != "rope_theta"}
    assert said["tie_word_embeddings"] is False


def test_a_tokenizer_saved_by_transformers_5_is_exported_in_terms_of_4(tmp_path):
    folder = tiny.model_folder(tmp_path / "in")
    file = folder / "tokenizer_config.json"
    newer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_start|>"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | newer))
    cfg, _, params = tiny.load(folder)
    weights.export(params, cfg, folder, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert said["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in said


READ = """
import json, sys, numpy as np, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
out = {"version": transformers.__version__}
for folder in sys.argv[2:]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    except ValueError as error:
        out[folder] = str(error)
        continue
    tokens = torch.arange(40)[None] * 5 % 250
    with torch.no_grad():
        logits = model(tokens).logits[0].float().numpy()
    ids = AutoTokenizer.from_pretrained(folder)("a <|im_start|> b")["input_ids"]
    out[folder] = {"logits": logits.tolist(), "ids": ids, "dtype": str(model.dtype)}
json.dump(out, open(sys.argv[1], "w"))
"""


def read_by(python, folders, to):
    """Returns what the transformers of a Python makes of model folders, by folder."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", READ, str(to), *map(str, folders)],
        env={**env, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(to.read_text())


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    """The Python of an environment with transformers 4.57 and the torch of this one."""
    if given := os.environ.get("SDJAX_TRANSFORMERS_4"):
        return given
    folder = tmp_path_factory.mktemp("transformers4")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "torch_of_the_other.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    needed = [OLDER, "tokenizers<0.23", "huggingface_hub<1"]
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
    return str(python)


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_transformers_4_and_5_compute_what_sdjax_computes(family, tmp_path, older_python):
    ours = {}
    parity = family_cases.of(family).parity
    named = {name: case for name, case in parity.items() if told(case)}
    for i, (name, case) in enumerate(named.items()):
        folder = tmp_path / str(i) / "out"
        ours[str(folder)] = name, exported(tmp_path / str(i) / "in", folder, family, **case)
    refused = 0
    for python in (sys.executable, older_python):
        read = read_by(python, ours, tmp_path / "read.json")
        assert read["version"].startswith("4.57." if python == older_python else "5.")
        for folder, (name, logits) in ours.items():
            if isinstance(read[folder], str):
                # OLMo 2 of transformers 4 knows linear scaling alone, and says so.
                assert family == "olmo2" and "rope_scaling" in read[folder], read[folder]
                refused += 1
                continue
            assert read[folder]["dtype"] == "torch.float32"
            np.testing.assert_allclose(read[folder]["logits"], logits, atol=2e-3, err_msg=name)
            assert 1 in read[folder]["ids"]
    assert refused < len(ours)
