"""Every mistake in models, checkpoints and answers ends the program with one line."""

import json
import shutil
import struct

import pytest
import tiny
from mistakes import CONFIG, EVALUATE, EXPORT, Attempt, says

from sdjax.main import main


@pytest.fixture
def attempt(tmp_path, model, capsys):
    return Attempt(tmp_path, model, capsys)


def change_config(**fields):
    def change(folder):
        file = folder / "config.json"
        made = json.loads(file.read_text()) | fields
        file.write_text(json.dumps({k: v for k, v in made.items() if v is not ...}))

    return change


def rewrite(pattern, data):
    """Returns a change of the first file that fits: other bytes, or None to remove all."""

    def change(folder):
        files = sorted(folder.glob(pattern))
        assert files, pattern
        for file in files if data is None else files[:1]:
            file.unlink() if data is None else file.write_bytes(data)

    return change


def cut(pattern, keep):
    def change(folder):
        file = sorted(folder.glob(pattern))[0]
        file.write_bytes(file.read_bytes()[:keep])

    return change


def other_tensors(change_of):
    def change(folder):
        from safetensors.numpy import load_file, save_file

        file = sorted(folder.glob("*.safetensors"))[0]
        tensors = load_file(file)
        name = sorted(tensors)[0]
        change_of(tensors, name)
        save_file(tensors, file)

    return change


def misshape(tensors, name):
    tensors[name] = tensors[name][:-1].copy()


def integers(tensors, name):
    tensors[name] = tensors[name].astype("int32")


MODELS = {
    "no config.json": (rewrite("config.json", None), ["MODEL", "no config.json"]),
    "config.json cut": (cut("config.json", 20), ["config.json", "not JSON"]),
    "config.json empty": (rewrite("config.json", b""), ["config.json", "not JSON"]),
    "config.json a list": (rewrite("config.json", b"[]"), ["config.json", "object"]),
    "another family": (change_config(model_type="mamba"), ["model_type is 'mamba'", "qwen3"]),
    "a size missing": (change_config(hidden_size=...), ["hidden_size is missing"]),
    "a size as text": (change_config(hidden_size="32"), ["hidden_size is '32'"]),
    "a size of zero": (change_config(num_hidden_layers=0), ["num_hidden_layers is 0"]),
    "more layers than a model can have": (
        change_config(num_hidden_layers=10**7),
        ["num_hidden_layers is 10000000", "must be at most 10,000"],
    ),
    "more layers than the files have": (
        change_config(num_hidden_layers=9_999),
        ["do not fit config.json; missing: model.layers.", ".weight and ", " more"],
    ),
    "heads that do not divide": (
        change_config(num_key_value_heads=3),
        ["num_key_value_heads is 3"],
    ),
    "an odd head": (change_config(head_dim=7), ["head_dim is 7", "even"]),
    "another activation": (change_config(hidden_act="gelu"), ["hidden_act is 'gelu'", "silu"]),
    "a head count as text": (change_config(num_key_value_heads="2"), ["num_key_value_heads is"]),
    "tying as text": (change_config(tie_word_embeddings="no"), ["tie_word_embeddings is 'no'"]),
    "a switch of another model": (change_config(use_gate=True), ["use_gate is True", "unknown"]),
    "an unknown field": (change_config(quantum_gates=4), ["quantum_gates is 4", "unknown"]),
    "an unknown rope": (
        change_config(rope_scaling={"rope_type": "spiral", "factor": 2}),
        ["rope", "spiral"],
    ),
    "no weights": (rewrite("*.safetensors*", None), ["no .safetensors file", "convert"]),
    "weights cut": (cut("*.safetensors", 1000), ["safetensors", "not a readable"]),
    "weights empty": (rewrite("*.safetensors", b""), ["safetensors", "not a readable"]),
    "an index of nothing": (rewrite("*.index.json", b"{}"), ["index.json", "not an index"]),
    "an index of missing files": (
        rewrite("*.index.json", b'{"weight_map": {"a": "gone.safetensors"}}'),
        ["gone.safetensors", "missing", "download"],
    ),
    "an index that leaves": (
        rewrite("*.index.json", b'{"weight_map": {"a": "../../etc/x.safetensors"}}'),
        ["index.json", "outside"],
    ),
    "a tensor gone": (other_tensors(lambda t, n: t.pop(n)), ["do not fit", "missing: "]),
    "a tensor too many": (
        other_tensors(lambda t, n: t.update(stranger=t[n].copy())),
        ["unexpected: stranger"],
    ),
    "a tensor misshapen": (other_tensors(misshape), ["misshapen: "]),
    "a tensor of integers": (other_tensors(integers), ["is I32", "only F32"]),
    "no tokenizer": (rewrite("tokenizer*", None), ["no tokenizer"]),
    "a broken tokenizer": (rewrite("tokenizer.json", b"{"), ["tokenizer cannot be read"]),
    "no chat template": (rewrite("chat_template.jinja", None), ["no chat template", "add"]),
    "a broken template": (rewrite("chat_template.jinja", b"{% for %}"), ["chat template"]),
    "a template that refuses": (
        rewrite("chat_template.jinja", b"{{ raise_exception('no users') }}"),
        ["chat template refuses", "no users"],
    ),
    "a broken generation config": (
        rewrite("generation_config.json", b"{"),
        ["generation_config.json", "not JSON"],
    ),
    "a stop token of words": (
        rewrite("generation_config.json", b'{"eos_token_id": "end"}'),
        ["generation_config.json", "eos_token_id is ['end']"],
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_broken_model_folder_is_named(attempt, model, kind):
    change, words = MODELS[kind]
    folder = attempt.folder / "broken"
    shutil.copytree(model, folder)
    change(folder)
    attempt.model = str(folder)
    words = [str(folder) if word == "MODEL" else word for word in words]
    says(attempt(), *words, "broken" if "config.json" not in words[0] else "")


def test_a_folder_of_adapters_names_their_base(attempt):
    folder = attempt.folder / "adapters"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    attempt.model = str(folder)
    says(attempt(), str(folder), "adapter_config.json", "adapters of org/base", "merge")


def gguf(*parts):
    return b"GGUF" + b"".join(parts)


PATHS = {
    "no folder": ("no/such/folder", ["no/such/folder", "no such folder"]),
    "a file": ("FOLDER/c.py", ["neither a folder nor a .gguf file"]),
    "no package": ("package:no_such_package", ["not installed", "pip install"]),
    "a package without a model": ("package:json", ["0 .gguf files"]),
    "no gguf": ("FOLDER/none.gguf", ["none.gguf", "no such"]),
    "an empty gguf": ("FOLDER/empty.gguf", ["empty.gguf"]),
    "a gguf of text": ("FOLDER/text.gguf", ["text.gguf", "GGUF"]),
    "a gguf cut": ("FOLDER/cut.gguf", ["cut.gguf"]),
    "nothing": ("", ["model.path is ''", "name a folder"]),
}


@pytest.mark.parametrize("kind", PATHS)
def test_a_model_that_is_not_there_is_named(attempt, kind):
    path, words = PATHS[kind]
    (attempt.folder / "empty.gguf").write_bytes(b"")
    (attempt.folder / "text.gguf").write_text("a model, honestly")
    (attempt.folder / "cut.gguf").write_bytes(gguf(struct.pack("<IQQ", 3, 10, 10), b"\x05"))
    (attempt.folder / "c.py").write_text("")
    attempt.model = path.replace("FOLDER", str(attempt.folder))
    says(attempt(), *words)


def test_a_hub_that_is_not_reached_is_named(attempt, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    attempt.model = "someone/some-model"
    says(attempt(), "model.path is 'someone/some-model'", "not to be had from the hub")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """Returns the directory of a training of one step."""
    folder = tmp_path_factory.mktemp("finished")
    attempt = Attempt(folder, model, None)
    assert main(["--config", str(attempt.write(CONFIG, "file"))]) == 0
    return attempt.out


def other_model(attempt):
    attempt.model = str(tiny.model_folder(attempt.folder / "other", num_hidden_layers=3))


# The copy of the run has its data and model in another folder.
MOVED = ["--allow", "task.train", "task.test", "model.path"]
RESUMED = {
    "no --resume": ([], None, ["holds a run", "--resume"]),
    "another teacher": (
        ["--resume", "--steps", "2", "--teacher.kind", "live", *MOVED, "teacher.kind"],
        None,
        ["checkpoint", "does not fit", "teacher"],
    ),
    "another model": (
        ["--resume", "--steps", "2", *MOVED, "weights", "model.path"],
        other_model,
        ["does not fit", "model"],
    ),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_run_that_cannot_be_gone_on_with_stays_as_it_was(attempt, finished, kind):
    args, change, words = RESUMED[kind]
    shutil.copytree(finished, attempt.out)
    if change:
        change(attempt)
    says(attempt(*args), *words)


EXPORTS = {
    "no run": (lambda run: shutil.rmtree(run), [], ["made", "no config.json"]),
    "a config cut": (cut("config.json", 30), [], ["config.json", "not JSON"]),
    "no training": (rewrite("config.json", b'{"class": "Prepare"}'), [], ["not of a training"]),
    "no such step": (lambda run: None, ["--step", "7"], ["step is 7", "are 1"]),
    "no checkpoint": (
        lambda run: shutil.rmtree(run / "checkpoints"), [], ["run is", "no checkpoints", "every"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_run_that_cannot_be_exported_is_named(attempt, finished, kind):
    change, args, words = EXPORTS[kind]
    shutil.copytree(finished, attempt.folder / "made")
    change(attempt.folder / "made")
    says(attempt(*args, config=EXPORT), *words)


def test_an_export_does_not_replace_a_folder(attempt, finished):
    shutil.copytree(finished, attempt.folder / "made")
    attempt.out.mkdir()
    says(attempt(config=EXPORT), "out is", "it exists", "choose another")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"answers.jsonl": "{\n" * 2}, ["answers.jsonl:1", "not an answer", "remove the file"]),
        (
            {"answers.jsonl": '{"set": "sciknoweval", "id": "other"}\n' * 2},
            ["answers.jsonl:1", "answers other", "comes here"],
        ),
        (
            {"config.json": '{"class": "Evaluate", "eval": {"k": 9}}', "answers.jsonl": "{}\n"},
            ["was made with other fields", " more; ", "--resume --allow", "eval.k"],
        ),
        ({"config.json": "{", "answers.jsonl": "{}\n"}, ["config.json", "not JSON"]),
    ],
)
def test_answers_that_cannot_be_gone_on_with_are_named(attempt, files, words):
    attempt.out.mkdir()
    for name, text in files.items():
        (attempt.out / name).write_text(text)
    says(attempt("--resume", config=EVALUATE), *words)
