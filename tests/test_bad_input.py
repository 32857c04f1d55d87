"""Every mistake ends the program with one line that names the thing and the remedy.

Exit code 2, no traceback, and nothing half-written: what `out` names does not exist afterwards, or
is what it was.
"""

import json
import shutil
import struct

import pytest
import tiny

from sdjax.main import main

TASK = {
    "sums": """
from sdjax.tasks.arithmetic import Arithmetic
TASK = Arithmetic(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                  size=20, held_out=6)
""",
    "file": """
from sdjax.tasks.sciknoweval import SciKnowEval
TASK = SciKnowEval(train="TRAIN", test="TEST", held_out=2)
""",
}
CONFIG = """
from sdjax.config import *
config = Train(out="OUT", steps=1, task=TASK, model=Model(path="MODEL", compute_dtype="float32"),
    rollout=Rollout(prompts_per_step=2, group_size=2, max_prompt_tokens=400,
                    max_completion_tokens=8),
    reprompt=Reprompt(max_tokens=450), optim=Optim(microbatch=2),
    eval=Eval(k=1, examples=2, max_completion_tokens=8),
    log=Log(progress=False, tensorboard=False), checkpoint=Checkpoint(export=False))
"""
EVALUATE = """
from sdjax.config import *
config = Evaluate(out="OUT", task=TASK, model=Model(path="MODEL", compute_dtype="float32"),
    max_prompt_tokens=400, eval=Eval(k=1, examples=2, max_completion_tokens=8, every=0))
"""
EXPORT = """
from sdjax.config import *
config = Export(run="RUN", out="OUT")
"""
ROW = {
    "answer": "A",
    "prompt": "Which?\n\nA: one\nB: two\nPlease reason step by step.",
    "system": "Answer.",
}


def rows(*changed, name="Question"):
    """Returns JSON lines of four good rows, with these fields of one row changed (None: gone)."""
    out = []
    for i in range(4):
        row = ROW | {"idx": i, "prompt": f"{name} {i}. " + ROW["prompt"]}
        for at, field, value in changed:
            if at == i and value is None:
                row.pop(field)
            elif at == i:
                row[field] = value
        out.append(json.dumps(row))
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")


class Attempt:
    """A command that is expected to fail, in a folder of its own."""

    def __init__(self, folder, model, capsys):
        self.folder, self.model, self.capsys = folder, str(model), capsys
        self.out = folder / "run"
        self.data = {"TRAIN": "train.json", "TEST": "test.json"}
        (folder / "train.json").write_text("\n".join(rows()))
        (folder / "test.json").write_text("\n".join(rows(name="Other")))

    def write(self, config, task):
        text = TASK[task] + config
        words = {"OUT": self.out, "MODEL": self.model, "RUN": self.folder / "made"}
        for word, value in (words | self.data).items():
            path = self.folder / str(value) if word in self.data and "://" not in value else value
            text = text.replace(word, str(path))
        file = self.folder / "c.py"
        file.write_text(text)
        return file

    def __call__(self, *args, config=CONFIG, task="file", code=2):
        """Returns the one line that the command ends with."""
        file = self.write(config, task)
        before = contents(self.out)
        self.capsys.readouterr()
        assert main(["--config", str(file), *args]) == code
        shown = self.capsys.readouterr().err
        said = [line for line in shown.splitlines() if not line.startswith("loaded ")]
        assert len(said) == 1 and said[0].startswith("sdjax: error: "), shown
        assert contents(self.out) == before, "something was written"
        assert len(said[0]) < 700, said[0]
        return said[0].removeprefix("sdjax: error: ")


def contents(path):
    if not path.exists():
        return None
    if path.is_file():
        return path.read_bytes()
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture
def attempt(tmp_path, model, capsys):
    return Attempt(tmp_path, model, capsys)


def says(line, *words):
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        # What a field may be.
        (["--loss.alpha", "2"], ["loss.alpha is 2.0", "[0, 1]"]),
        (["--loss.divergence", "tpo_k"], ["loss.divergence", "tpo_k", "top_k"]),
        (["--loss.token_weights", "unifrom"], ["loss.token_weights", "uniform"]),
        (["--optim.lr", "-1"], ["optim.lr is -1.0", "must not be negative"]),
        (["--optim.beta1", "1"], ["optim.beta1 is 1.0", "[0, 1)"]),
        (["--optim.clip_norm", "0"], ["optim.clip_norm is 0.0", "positive"]),
        (["--optim.microbatch", "0"], ["optim.microbatch is 0", "at least 1"]),
        (["--rollout.temperature", "0"], ["rollout.temperature is 0.0", "positive"]),
        (["--rollout.top_p", "1.5"], ["rollout.top_p is 1.5", "(0, 1]"]),
        (["--rollout.prompts_per_step", "0"], ["rollout.prompts_per_step is 0", "at least 1"]),
        (["--rollout.max_completion_tokens", "0"], ["rollout.max_completion_tokens is 0"]),
        (["--eval.k", "0"], ["eval.k is 0", "at least 1"]),
        (["--teacher.kind", "emma"], ["teacher.kind", "emma", "ema"]),
        (["--teacher.ema_rate", "1.1"], ["teacher.ema_rate is 1.1", "[0, 1]"]),
        (["--checkpoint.keep", "0"], ["checkpoint.keep is 0", "at least 1"]),
        (["--reprompt.template", "no hole"], ["reprompt.template", "{prompt}"]),
        (["--steps", "0"], ["steps is 0", "at least 1"]),
        (["--steps", "many"], ["many", "steps"]),
        (["--optim.lr", "nan"], ["optim.lr is nan"]),
        (["--mesh.data", "0"], ["mesh.data is 0", "positive or -1"]),
        (["--mesh.data", "-1"], ["mesh is", "only one axis may be -1"]),
        # Fields that do not go together.
        (["--rollout.group_size", "1"], ["rollout.group_size is 1", "at least 2"]),
        (["--optim.microbatch", "3"], ["optim.microbatch is 3", "must divide"]),
        (["--optim.minibatches", "3"], ["optim.minibatches is 3", "must divide"]),
        (
            ["--teacher.kind", "ema", "--teacher.location", "host"],
            ["teacher.location is 'host'", "must be 'device'"],
        ),
        (["--reprompt.demonstration", "none"], ["reprompt.demonstration is 'none'", "feedback"]),
        # Fields that do not exist.
        (["--optim.rl", "1"], ["--optim.rl", "--optim.lr"]),
        (["--loss"], ["--loss"]),
        (["stray"], ["stray"]),
        # What the model or the machine does not allow.
        (["--mesh.data", "3"], ["mesh is data=3", "number of devices, 1"]),
        (["--mesh.tensor", "2", "--mesh.fsdp", "1"], ["tensor=2", "number of devices, 1"]),
        (["--rollout.max_completion_tokens", "500"], ["model's context of 512", "lower either"]),
        (["--reprompt.max_tokens", "510"], ["reprompt.max_tokens is 510", "context of 512"]),
        (["--rollout.max_prompt_tokens", "5"], ["max_prompt_tokens is 5", "every one of"]),
        (["--model.attention", "cudnn"], ["model.attention is 'cudnn'", "needs a GPU", "say auto"]),
        # Where files are to go.
        (["--out", "/dev/null/run"], ["out is '/dev/null/run'", "cannot be written"]),
        (["--out", "/proc/run"], ["out is '/proc/run'", "cannot be written"]),
        (["--profile", "/dev/null/trace"], ["profile is '/dev/null/trace'", "another directory"]),
        # Several processes.
        (["--processes", "2"], ["--coordinator and --process: missing", "HOST:PORT"]),
        (["--coordinator", "host", "--processes", "2", "--process", "0"], ["HOST:PORT"]),
        (["--coordinator", "h:1", "--processes", "2", "--process", "2"], ["under --processes (2)"]),
        # Servers.
        (["--rollout.server.url", "127.0.0.1:8000"], ["server.url is '127.0.0.1:8000'", "http://127.0.0.1:8000"]),
        (
            ["--rollout.server.url", "http://127.0.0.1:9", "--rollout.server.reload", "folder",
             "--rollout.server.retries", "0"],
            ["http://127.0.0.1:9", "not reached", "start the server"],
        ),
        (
            ["--rollout.server.url", "http://127.0.0.1:9", "--rollout.server.reload", "folder",
             "--rollout.server.key_variable", "NO_SUCH_KEY"],
            ["server.key_variable is 'NO_SUCH_KEY'", "export it"],
        ),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_named_with_its_remedy(attempt, args, words):
    says(attempt(*args), *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task.name", "chain_sun"], ["chain_sun", "chain_sum"]),
        (["--task.options", "min_trems", "2"], ["min_trems"]),
        (["--task.held_out", "0"], ["task.held_out is 0", "at least 1"]),
    ],
)
def test_a_generator_that_cannot_be_is_named(attempt, args, words):
    says(attempt(*args, task="sums"), *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Train(", "Trian(", ["c.py, line", "Trian", "perhaps you meant Train"]),
        ("steps=1", "stesp=1", ["c.py, line", "stesp", "perhaps you meant steps"]),
        ("steps=1", "steps='1'", ["steps is '1'", "must be int"]),
        ("k=1", "k=0", ["c.py, line", "eval.k is 0"]),
        ("config = ", "cfg = ", ["does not bind `config`", "Train"]),
        ("config = Train", "config = dict", ["`config` is of type dict"]),
        ("k=1", "k=(1", ["c.py, line", "was never closed"]),
        ("import *", "import Trane", ["cannot import name 'Trane'", "perhaps you meant Train"]),
        ("task=TASK", "task=1 / 0", ["c.py, line", "ZeroDivisionError"]),
    ],
)
def test_a_mistake_in_the_config_file_is_named_with_its_line(attempt, old, new, words):
    assert old in CONFIG
    says(attempt(config=CONFIG.replace(old, new)), *words)


def damaged_parquet(place):
    (place / "train.parquet").write_bytes(b"PAR1 this is no parquet PAR1")


DATA = {
    "no file": ("nowhere.json", None, ["nowhere.json", "no such file"]),
    "an unknown kind": ("train.csv", "a,b", ["train.csv", "is none of", ".parquet"]),
    "an empty file": ("train.json", "", ["train.json", "has no rows"]),
    "white space": ("train.json", "\n \n", ["train.json", "has no rows"]),
    "no JSON": ("train.json", rows()[0] + '\n{"prompt": "cut o\n', ["train.json:2", "not JSON"]),
    "a number": ("train.json", "\n".join([*rows()[:3], "7"]), ["train.json:4", "not an object"]),
    "a broken array": ("train.json", "[" + rows()[0] + ", {]", ["train.json:2", "mend the row"]),
    "not UTF-8": ("train.json", b'{"prompt": "\xff\xfe"}', ["train.json:1", "utf-8"]),
    "no answer": ("train.json", rows((2, "answer", None)), ["train.json:3", "field 'answer'"]),
    "a wrong answer": ("train.json", rows((0, "answer", "AB")), ["train.json:1", "'AB'", "letter"]),
    "a number for text": ("train.json", rows((1, "prompt", 3)), ["train.json:2", "int, not text"]),
    "an empty prompt": ("train.json", rows((1, "prompt", " ")), ["train.json:2", "is empty"]),
    "other columns": ("train.json", '{"question": "x"}', ["train.json:1", "columns are question"]),
    "no parquet": ("train.parquet", b"PAR1 no parquet PAR1", ["train.parquet", "fetch it again"]),
    "a TFDS folder": ("folder", ..., ["folder", "TFDS data directory"]),
    "a long prompt": (
        "train.json",
        rows((1, "prompt", "long " * 200)),
        ["prompt of example", "max_prompt_tokens (400)", "on_overlong"],
    ),
    "the training rows held out": ("train.json", rows(name="Other"), ["every row to be held out"]),
    "a wrong scheme": ("hf://datasets/onlyname", None, ["hf://datasets/OWNER/NAME"]),
    "nobody at home": (
        "http://127.0.0.1:9/x.json",
        None,
        ["127.0.0.1:9", "cannot be fetched ([Errno 111]"],
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_wrong_data_is_named_by_file_and_row(attempt, kind):
    name, text, words = DATA[kind]
    (attempt.folder / "train.json").unlink()
    attempt.data["TRAIN"] = name
    if text is ...:
        (attempt.folder / name).mkdir()
    elif text is not None:
        text = "\n".join(text) if isinstance(text, list) else text
        data = text if isinstance(text, bytes) else text.encode()
        (attempt.folder / name).write_bytes(data)
    says(attempt("--data.on_overlong", "error", task="file"), *words)


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
    "heads that do not divide": (
        change_config(num_key_value_heads=3),
        ["num_key_value_heads is 3"],
    ),
    "an odd head": (change_config(head_dim=7), ["head_dim is 7", "even"]),
    "another activation": (change_config(hidden_act="gelu"), ["hidden_act is 'gelu'", "silu"]),
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
