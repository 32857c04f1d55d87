"""Every mistake in configs and data ends the program with one line that names it and the remedy.

Exit code 2, no traceback, and nothing half-written: what `out` names does not exist afterwards, or
is what it was. Models and checkpoints: test_bad_models.
"""

import pytest
from mistakes import CONFIG, JOBS, Attempt, rows, says

from sdjax.main import main


@pytest.fixture
def attempt(tmp_path, model, capsys):
    return Attempt(tmp_path, model, capsys)


@pytest.mark.parametrize(
    ("args", "words"),
    [
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
        (["--reprompt.demonstration", "none"], ["reprompt.demonstration is 'none'", "feedback"]),
        (
            ["--reprompt.regenerate", "--reprompt.demonstration", "none", "--reprompt.feedback"],
            ["reprompt.regenerate is True", "reprompt.demonstration"],
        ),
        (
            ["--reprompt.regenerate", "--loss.distillation", "0"],
            ["reprompt.regenerate is True", "loss.distillation over 0"],
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
    ],
)  # fmt: skip
def test_an_impossible_setting_is_named_with_its_remedy(attempt, args, words):
    says(attempt(*args), *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
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
    ],
)
def test_a_generator_that_cannot_be_is_named(attempt, args, words):
    says(attempt(*args, task="sums"), *words)


@pytest.mark.parametrize("value", ["two", "2.5", "True"])
def test_an_option_of_another_type_than_the_generator_s_is_named(attempt, value):
    without = CONFIG.replace("task=TASK", "task=Arithmetic(size=20, held_out=6)")
    line = attempt("--task.options", "min_terms", value, task="sums", config=without)
    shown = value if value == "2.5" else repr(value)
    assert line == f"task.options.min_terms is {shown}: must be a whole number"


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
    "an unknown kind": ("train.tsv", "a\tb", ["train.tsv", "is none of", ".parquet"]),
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


@pytest.mark.parametrize(
    ("args", "words"),
    [
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
    ],
)
def test_a_wrong_argument_is_answered_with_the_field_it_means(attempt, args, words):
    says(attempt(*args), *words)


@pytest.mark.parametrize(
    ("job", "args", "words"),
    [
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
    ],
)
def test_a_mistake_in_another_job_is_named(attempt, job, args, words):
    says(attempt(*args, config=JOBS[job]), *words)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            ["--processes is 'two'", "whole number"],
        ),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, ["OMPI_COMM_WORLD_SIZE is 'many'"]),
    ],
)
def test_a_wrong_environment_is_named(attempt, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    says(attempt(), *words)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("http://x/y", ["out is 'http://x/y'", "gs://"]),
        ("s3://bucket/x", ["out is 's3://bucket/x'", "pip install s3fs"]),
        ("gs://bucket/x", ["out is 'gs://bucket/x'", "no Google Cloud credentials"]),
    ],
)
def test_a_bucket_that_cannot_be_had_is_named(attempt, monkeypatch, out, words):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/gone/key.json")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    says(attempt("--out", out), *words)


def test_debug_shows_the_traceback(attempt, capsys):
    assert main(["--config", str(attempt.write(CONFIG, "file")), "--steps", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
