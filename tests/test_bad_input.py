"""Bad data, models and sizes: exit code 2 and one line that names the thing and the remedy."""

import json
from dataclasses import replace

import pytest
import tiny

from sdjax.jobs import train
from sdjax.main import load, main

TASK = {
    "sums": """
from sdjax.tasks.arithmetic import Arithmetic
TASK = Arithmetic(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                  held_out=6)
""",
    "file": """
from sdjax.tasks.sciknoweval import SciKnowEval
TASK = SciKnowEval(train="DATA/train.json", test="DATA/test.json", held_out=2)
""",
}
CONFIG = """
from sdjax.config import *
config = Train(out="OUT", steps=1, task=TASK, model=Model(path="MODEL", compute_dtype="float32"),
    rollout=Rollout(prompts_per_step=2, group_size=2, max_prompt_tokens=400,
                    max_completion_tokens=8),
    reprompt=Reprompt(max_tokens=450), optim=Optim(microbatch=2),
    eval=Eval(k=1, examples=2, max_completion_tokens=8), log=Log(progress=False))
"""
ROW = {
    "idx": 1,
    "kind": "mcq",
    "dataset": "sciknoweval",
    "answer": "A",
    "prompt": "Which?\n\nA: one\nB: two\nPlease reason step by step.",
    "system": "Answer.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def attempt(tmp_path, capsys, model):
    """Returns a function that runs a config and gives its exit code and message."""

    def run(task="sums", model=model, data=None, args=()):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name, rows in (data or {}).items():
            (folder / name).write_text("".join(row + "\n" for row in rows))
        text = TASK[task] + CONFIG
        for word, path in (("DATA", folder), ("OUT", tmp_path / "run"), ("MODEL", model)):
            text = text.replace(word, str(path))
        (tmp_path / "c.py").write_text(text)
        code = main(["--config", str(tmp_path / "c.py"), *args])
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0, error
        assert not (tmp_path / "run").exists(), "something was written"
        return code, error

    return run


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


def test_an_empty_data_file_is_named(attempt):
    code, error = attempt("file", data={"train.json": [], "test.json": rows()})
    assert code == 2 and "train.json" in error and "no row" in error.lower()


def test_a_test_file_of_training_rows_alone_is_named(attempt):
    code, error = attempt("file", data={"train.json": rows(), "test.json": rows()[:2]})
    assert code == 2 and "sciknoweval: every row to be held out is in the training set" in error


def test_a_row_without_an_answer_is_named_by_file_row_and_field(attempt):
    data = {"train.json": rows((2, "answer", None)), "test.json": rows()}
    code, error = attempt("file", data=data)
    assert code == 2 and "train.json:3" in error and "answer" in error


def test_a_row_that_is_not_json_is_named(attempt):
    broken = rows()
    broken[1] = '{"idx": 1, "prompt": "cut o'
    code, error = attempt("file", data={"train.json": broken, "test.json": rows()})
    assert code == 2 and "train.json:2" in error


def test_a_prompt_over_the_limit_is_named_when_asked(attempt):
    data = {"train.json": rows((1, "prompt", "long " * 200)), "test.json": rows()}
    code, error = attempt("file", data=data, args=["--data.on_overlong", "error"])
    assert code == 2 and "max_prompt_tokens (400)" in error


def test_prompts_all_over_the_limit_are_an_error(attempt):
    code, error = attempt(args=["--rollout.max_prompt_tokens", "5"])
    assert code == 2 and "max_prompt_tokens is 5" in error


def test_a_folder_without_a_tokenizer_is_named(attempt, tmp_path):
    folder = tiny.model_folder(tmp_path / "bare")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    code, error = attempt(model=folder)
    assert code == 2 and "no tokenizer" in error and "bare" in error


def test_a_missing_folder_is_named(attempt):
    code, error = attempt(model="no/such/folder")
    assert code == 2 and "no/such/folder" in error


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mesh.data", "3"], ["mesh is data=3", "number of devices"]),
        (["--rollout.max_completion_tokens", "500"], ["model's context of 512"]),
        (["--reprompt.max_tokens", "510"], ["reprompt.max_tokens is 510", "context of 512"]),
        (["--optim.microbatch", "3"], ["optim.microbatch is 3", "must divide"]),
        (["--rollout.group_size", "1"], ["rollout.group_size is 1", "at least 2"]),
        (["--optim.minibatches", "3"], ["optim.minibatches is 3", "must divide"]),
        (["--loss.divergence", "tpo_k"], ["loss.divergence", "top_k"]),
        (["--loss.token_weights", "unifrom"], ["loss.token_weights", "uniform"]),
        (["--task.name", "chain_sun"], ["chain_sun", "chain_sum"]),
        (["--loss.alpha", "2"], ["loss.alpha is 2.0", "[0, 1]"]),
        (["--optim.rl", "1"], ["--optim.rl", "--optim.lr"]),
        (["--steps", "many"], ["many"]),
    ],
)
def test_an_impossible_setting_is_named_with_its_remedy(attempt, args, words):
    code, error = attempt(args=args)
    assert code == 2
    for word in words:
        assert word in error, error


def test_a_reprompt_may_exceed_the_context_where_the_config_says_so(tmp_path, model):
    text = (TASK["sums"] + CONFIG).replace("OUT", str(tmp_path / "run"))
    (tmp_path / "c.py").write_text(text.replace("MODEL", str(model)))
    cfg = load(tmp_path / "c.py")
    long = replace(cfg.reprompt, max_tokens=510, beyond_context=True)
    *_, examples, sets = train._prepare(replace(cfg, reprompt=long))
    assert examples and sets


def test_a_missing_tensor_is_named_before_the_run_starts(tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    folder = tiny.model_folder(tmp_path / "partial")
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    gone = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != gone}, file)
    text = (TASK["sums"] + CONFIG).replace("OUT", str(tmp_path / "run"))
    (tmp_path / "c.py").write_text(text.replace("MODEL", str(folder)))
    assert main(["--config", str(tmp_path / "c.py")]) == 2
    error = capsys.readouterr().err.strip()
    assert gone in error and "partial" in error and error.count("\n") == 0


def test_skipped_rows_are_counted_and_listed(tmp_path, capsys, model):
    data = tmp_path / "data"
    data.mkdir()
    for name, content in (
        ("train.json", rows((2, "answer", None), (3, "prompt", "long " * 200))),
        ("test.json", rows(name="Other")),
    ):
        (data / name).write_text("\n".join(content))
    text = (TASK["file"] + CONFIG).replace("DATA", str(data)).replace("OUT", str(tmp_path / "run"))
    (tmp_path / "c.py").write_text(text.replace("MODEL", str(model)))
    assert main(["--config", str(tmp_path / "c.py"), "--data.on_bad_row", "skip"]) == 0
    said = capsys.readouterr().out
    assert "2 training examples (1 over 400 prompt tokens left out)" in said
    assert "1 rows skipped" in said and "train.json:3: field 'answer' is missing" in said
