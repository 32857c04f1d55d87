"""Mistakes of users and what the program must say of each: one table for two tests.

In-process tests (tests/config, tests/models) and real processes (tests/e2e) run the same ones.
"""

import json
import shutil
import struct

from mistakes import CONFIG, JOBS, rows, says

SETTINGS = [
    # Values that a field does not take.
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
    (["--seed", "-1"], ["seed is -1", "between 0 and"]),
    (["--data.seed", "-1"], ["data.seed is -1", "between 0 and"]),
    (["--task.seed", "99999999999"], ["task.seed is 99999999999", "between 0 and"]),
    (["--steps", "many"], ["many", "steps"]),
    (["--optim.lr", "nan"], ["optim.lr is nan"]),
    (["--mesh.data", "0"], ["mesh.data is 0", "positive or -1"]),
    (["--mesh.data", "-1"], ["mesh is", "only one axis may be -1"]),
    # Fields that contradict each other.
    (["--rollout.group_size", "1"], ["rollout.group_size is 1", "at least 2"]),
    (["--optim.microbatch", "3"], ["optim.microbatch is 3", "must divide"]),
    (["--optim.minibatches", "3"], ["optim.minibatches is 3", "must divide"]),
    (
        ["--teacher.kind", "ema", "--teacher.location", "host"],
        ["teacher.location is 'host'", "must be 'device'"],
    ),
    (["--teacher.kind", "model"], ["teacher.path is ''", "needs a folder"]),
    (["--teacher.path", "x"], ["teacher.path is 'x'", "teacher.kind 'model' only, not 'initial'"]),
    (
        ["--teacher.kind", "model", "--teacher.path", "no/such"],
        ["teacher.path is 'no/such'", "no such folder"],
    ),
    (
        ["--teacher.kind", "model", "--teacher.path", "x", "--loss.distillation", "0"],
        ["teacher.kind is 'model'", "loss.distillation over 0"],
    ),
    (["--teacher.adapter_scale", "2"], ["teacher.adapter_scale is 2.0", "live, ema or refreshed"]),
    (
        ["--teacher.kind", "live", "--teacher.adapter_scale", "2"],
        ["teacher.adapter_scale is 2.0", "set lora.rank over 0"],
    ),
    (
        ["--teacher.kind", "model", "--teacher.path", "x", "--teacher.route", "subject"],
        ["teacher.route is 'subject'", "need each other"],
    ),
    (["--teacher.kind", "refreshed", "--teacher.every", "0"], ["teacher.every is 0", "at least 1"]),
    (["--reprompt.demonstration", "none"], ["reprompt.demonstration is 'none'", "feedback"]),
    (
        ["--reprompt.regenerate", "--reprompt.demonstration", "none", "--reprompt.feedback"],
        ["reprompt.regenerate is True", "reprompt.demonstration"],
    ),
    (
        ["--reprompt.regenerate", "--loss.distillation", "0"],
        ["reprompt.regenerate is True", "loss.distillation over 0"],
    ),
    # A teacher that cannot know more than the student.
    (["--reprompt.demonstration", "solution"], ["none of the 4 training examples has a solution"]),
    (
        ["--reprompt.demonstration", "none", "--reprompt.feedback", "--task.grader",
         "choice_reference"],
        ["reprompt.feedback is True", "the rule of the task gives no feedback"],
    ),
    # Fields that do not exist.
    (["--optim.rl", "1"], ["--optim.rl", "--optim.lr"]),
    (["--loss"], ["--loss"]),
    (["stray"], ["stray"]),
    # Values that the model or the machine does not allow.
    (["--mesh.data", "3"], ["mesh is data=3", "number of devices, 1"]),
    (["--mesh.tensor", "2", "--mesh.fsdp", "1"], ["tensor=2", "number of devices, 1"]),
    (["--rollout.max_completion_tokens", "500"], ["model's context of 512", "lower either"]),
    (["--reprompt.max_tokens", "510"], ["reprompt.max_tokens is 510", "context of 512"]),
    (
        ["--reprompt.max_tokens", "510", "--reprompt.beyond_context", "--reprompt.regenerate"],
        ["reprompt.max_tokens is 510", "context of 512"],
    ),
    (["--rollout.max_prompt_tokens", "5"], ["rollout.max_prompt_tokens is 5", "every"]),
    (["--model.attention", "cudnn"], ["model.attention is 'cudnn'", "needs a GPU", "say auto"]),
    # Directories that cannot be written.
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
]  # fmt: skip

GENERATORS = [
    (["--task.name", "chain_sun"], ["chain_sun", "chain_sum"]),
    (["--task.options", "min_trems", "2"], ["min_trems"]),
    (
        ["--task.options", "min_terms", "two"],
        ["--task.options, min_terms, two; perhaps you meant --task.options.min_terms"],
    ),
    (
        ["--task.options.min_terms", "2.5"],
        ["task.options.min_terms is '2.5'", "must be a whole number"],
    ),
    (["--task.held_out", "-1"], ["task.held_out is -1", "must not be negative"]),
]

CONFIG_FILES = [
    ("Train(", "Trian(", ["c.py, line", "Trian", "perhaps you meant Train"]),
    ("steps=1", "stesp=1", ["c.py, line", "stesp", "perhaps you meant steps"]),
    ("steps=1", "steps='1'", ["steps is '1'", "must be int"]),
    ("k=1", "k=0", ["c.py, line", "eval.k is 0"]),
    ("config = ", "cfg = ", ["does not bind `config`", "Train"]),
    ("config = Train", "config = dict", ["`config` is of type dict"]),
    ("k=1", "k=(1", ["c.py, line", "was never closed"]),
    ("import *", "import Trane", ["cannot import name 'Trane'", "perhaps you meant Train"]),
    ("task=TASK", "task=1 / 0", ["c.py, line", "ZeroDivisionError"]),
]

DATA = {
    "no file": ("nowhere.json", None, ["nowhere.json", "no such file"]),
    "an unknown kind": ("train.xlsx", "PK", ["train.xlsx", "is none of", ".parquet"]),
    "a short row of a table": ("train.csv", "prompt,answer\nx\n", ["train.csv:2", "has 1 cells"]),
    "other columns of a table": (
        "train.csv",
        "q,answer\nx,A\n",
        ["train.csv:2", "columns answer, q"],
    ),
    "not UTF-8 as a table": ("train.csv", b"prompt,answer\n\xff,A\n", ["train.csv:2", "UTF-8"]),
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
        ["prompt of example", "over rollout.max_prompt_tokens (400)", "on_overlong"],
    ),
    "the training rows held out": ("train.json", rows(name="Other"), ["every row to be held out"]),
    "a wrong scheme": ("hf://datasets/onlyname", None, ["hf://datasets/OWNER/NAME"]),
    "nobody at home": (
        "http://127.0.0.1:9/x.json",
        None,
        ["127.0.0.1:9", "cannot be fetched (connection refused)"],
    ),
}

ARGUMENTS = [
    (["-steps", "2"], ["-steps", "perhaps you meant --steps"]),
    (["steps=2"], ["steps=2", "perhaps you meant --steps"]),
    (["--steps", "1.5"], ["steps is '1.5'", "whole number"]),
    (["--steps", "1e3"], ["steps is '1e3'", "whole number"]),
    (["--rollout.max_completion_tokens", "2k"], ["tokens is '2k'", "whole number"]),
    (["--optim.learning_rate", "1e-5"], ["learning_rate", "perhaps you meant --optim.lr"]),
    (["--lr", "1e-5"], ["--lr", "perhaps you meant --optim.lr"]),
    (["--batch_size", "4"], ["--batch_size", "--rollout.prompts_per_step"]),
    (["--num-generations", "4"], ["--num-generations", "--rollout.group_size"]),
    (["--model_name_or_path", "x"], ["--model_name_or_path", "--model.path"]),
    (["--output_dir", "x"], ["--output_dir", "perhaps you meant --out"]),
    (["--temperature", "1"], ["--temperature", "temperature"]),
    (["--log.progress", "maybe"], ["maybe", "log.progress", "'True', 'False'"]),
    (["--model.compute_dtype", "fp16"], ["fp16", "model.compute_dtype", "bfloat16"]),
    (["--lora.rank", "-1"], ["lora.rank is -1", "must not be negative"]),
    (["--model.remat", "all"], ["all", "model.remat", "full"]),
]

OTHER_JOBS = [
    ("sft", ["--source", "gone.jsonl"], ["gone.jsonl"]),
    ("sft", [], ["train.json"]),  # questions, not conversations
    ("sft", ["--turns", "first"], ["first", "turns", "last"]),
    ("sft", ["--max_tokens", "0"], ["max_tokens is 0"]),
    ("sft", ["--batch", "0"], ["batch is 0"]),
    ("study", ["--solved_min", "5", "--solved_max", "1"], ["solved_min", "5"]),
    ("study", ["--tried", "0"], ["tried is 0"]),
    ("study", ["--conditions", "guidedd"], ["guidedd", "conditions", "unguided"]),
    ("evaluate", ["--eval.k", "0"], ["eval.k is 0"]),
    ("evaluate", ["--model.path", "gone"], ["model.path is 'gone'"]),
    ("sweep", ["--axis", "data.limt"], ["data.limt"]),
    ("sweep", ["--values"], ["values"]),
    ("traces", ["--rows", "0"], ["rows is 0"]),
    ("traces", ["--shares", "other", "1.0"], ["other"]),
    ("report", [], ["made"]),
    ("report", ["--runs"], ["runs"]),
    ("bench", ["--phases", "rollouts"], ["rollouts", "phases"]),
    ("bench", ["--group_size", "0"], ["group_size is 0"]),
    ("prepare", ["--splits.train", "gone.jsonl"], ["gone.jsonl", "no such file"]),
    ("export", [], ["made", "no config.json"]),
    ("plan", [], ["made.py", "no such config file"]),
    ("plan", ["--price", "-1"], ["price is -1"]),
    ("plan", ["--slices", "0"], ["slices is 0", "at least 1"]),
    ("preflight", ["--train", "gone.py"], ["gone.py", "no such config file"]),
    ("preflight", ["--train", "package:plan"], ["train is 'package:plan'", "a Plan, not a Train"]),
    ("preflight", ["--questions", "1"], ["questions is 1", "at least 2"]),
    ("preflight", ["--questions", "5000"], ["questions is 5000", "training questions; lower it"]),
    ("preflight", ["--only", "solutoin"], ["only is 'solutoin'", "solution, unrelated"]),
    ("preflight", ["--change", "rollout.group_size"], ["change is", "must be NAME=VALUE"]),
    ("preflight", ["--change", "rollout.group_sise=4"], ["--rollout.group_size"]),
    (
        "preflight",
        ["--change", "rollout.group_size=1", "optim.microbatch=32"],
        ["rollout.group_size is 1", "at least 2"],
    ),
    ("preflight", ["--change", "reprompt.max_tokens=900"], ["reprompt.max_tokens is 900"]),
    (
        "preflight",
        ["--change", "reprompt.demonstration=none"],
        ["reprompt.demonstration is 'none'"],
    ),
    ("preflight", ["--change", "optim.microbatch=6"], ["optim.microbatch"]),
    (
        "preflight",
        ["--change", "teacher.kind=model", "teacher.path=MODEL"],
        ["teacher.kind is 'model'", "the student's weights"],
    ),
    ("preflight", ["--topology", "h200:3"], ["mesh", "3"]),
    ("preflight", ["--topology", "h2000:1"], ["topology is 'h2000:1'", "h200"]),
    ("preflight", ["--least_doubt", "2"], ["least_doubt is 2.0", "[0, 1]"]),
]


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


def wrong_setting(attempt, args, words):
    says(attempt(*args), *words)


def wrong_generator(attempt, args, words):
    says(attempt(*args, task="sums"), *words)


def wrong_config_file(attempt, old, new, words):
    assert old in CONFIG
    says(attempt(config=CONFIG.replace(old, new)), *words)


def wrong_data(attempt, name, text, words):
    (attempt.folder / "train.json").unlink()
    attempt.data["TRAIN"] = name
    if text is ...:
        (attempt.folder / name).mkdir()
    elif text is not None:
        text = "\n".join(text) if isinstance(text, list) else text
        data = text if isinstance(text, bytes) else text.encode()
        (attempt.folder / name).write_bytes(data)
    says(attempt("--data.on_overlong", "error", task="file"), *words)


def wrong_job(attempt, job, args, words):
    says(attempt(*args, config=JOBS[job]), *words)


def wrong_model(attempt, change, words):
    folder = attempt.folder / "broken"
    shutil.copytree(attempt.model, folder)
    change(folder)
    attempt.model = str(folder)
    words = [str(folder) if word == "MODEL" else word for word in words]
    says(attempt(), *words, "broken" if "config.json" not in words[0] else "")


def wrong_path(attempt, path, words):
    (attempt.folder / "empty.gguf").write_bytes(b"")
    (attempt.folder / "text.gguf").write_text("a model, honestly")
    (attempt.folder / "cut.gguf").write_bytes(gguf(struct.pack("<IQQ", 3, 10, 10), b"\x05"))
    (attempt.folder / "c.py").write_text("")
    attempt.model = path.replace("FOLDER", str(attempt.folder))
    says(attempt(), *words)


def every_mistake():
    """Returns each mistake by name: the function that makes it, and its other arguments."""
    kinds = [
        *(("setting", wrong_setting, row) for row in (*SETTINGS, *ARGUMENTS)),
        *(("generator", wrong_generator, row) for row in GENERATORS),
        *(("config file", wrong_config_file, row) for row in CONFIG_FILES),
        *(("job", wrong_job, row) for row in OTHER_JOBS),
        *(("data", wrong_data, row) for row in DATA.values()),
        *(("model", wrong_model, row) for row in MODELS.values()),
        *(("path", wrong_path, row) for row in PATHS.values()),
    ]
    return {f"{number}: {kind}": (make, row) for number, (kind, make, row) in enumerate(kinds, 1)}
