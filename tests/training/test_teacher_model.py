"""A model that teaches is held to the student's vocabulary before any weights load."""

import json
import shutil
from pathlib import Path

import mistakes
import pytest
import runs
import tiny
from mistake_tables import change_config, other_tensors, rewrite

from sdjax.jobs import train_job
from sdjax.models.files import weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a second model, of other sizes, that tests copy."""
    return tiny.model_folder(tmp_path_factory.mktemp("teacher") / "t", "llama", hidden_size=48)


def other_vocabulary(folder):
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text())
    known = made["model"]["vocab"]
    known["a"], known["b"] = known["b"], known["a"]
    file.write_text(json.dumps(made))


def other_rules(folder):
    """The same tokens, but a space before each text."""
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text())
    made["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(made))


def fewer_rows(folder):
    tiny.model_folder(folder, "llama", vocab_size=tiny.VOCABULARY - 2)


WRONG = {
    "other tokens": (other_vocabulary, ["TEACHER: its tokenizer is not", "is 'b', and 'a' in the"]),
    "other rules": (other_rules, ["TEACHER: its tokenizer is not", "cuts texts in other places"]),
    "fewer rows": (fewer_rows, ["config.json gives it 262 tokens, fewer than the student's 264"]),
    "no tokenizer": (rewrite("tokenizer*", None), ["TEACHER: no tokenizer"]),
    "no config.json": (
        rewrite("config.json", None),
        ["teacher.path is 'TEACHER'", "no config.json"],
    ),
    "another family": (change_config(model_type="mamba"), ["model_type is 'mamba'"]),
    "a tensor gone": (other_tensors(lambda t, n: t.pop(n)), ["TEACHER", "do not fit", "missing: "]),
    "a short context": (
        change_config(max_position_embeddings=100),
        ["reprompt.max_tokens is 450", "context of the teacher (teacher.path), 100"],
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_folder_that_cannot_teach_ends_in_one_line_before_weights_load(
    tmp_path, model, folder, capsys, monkeypatch, kind
):
    monkeypatch.setattr(weights, "load", lambda *_: pytest.fail("loaded"))
    change, words = WRONG[kind]
    teacher = tmp_path / "teacher"
    shutil.copytree(folder, teacher)
    change(teacher)
    attempt = mistakes.Attempt(tmp_path, model, capsys)
    line = attempt("--teacher.kind", "model", "--teacher.path", str(teacher))
    mistakes.says(line, *(word.replace("TEACHER", str(teacher)) for word in words))


@pytest.mark.heavy
def test_one_completion_of_each_question_is_enough_for_a_teacher_of_the_prompt(
    tmp_path, model, folder
):
    job = runs.job(
        model,
        tmp_path / "run",
        steps=1,
        teacher={"kind": "model", "path": str(folder)},
        target={"context": "plain"},
        rollout={"group_size": 1},
        eval={"every": 0, "at_ends": False},
        checkpoint={"every": 0},
    )
    train_job.run(job)
    (metrics,) = [m for m in runs.lines(Path(job.out) / "metrics.jsonl") if m["step"] == 1]
    assert metrics["distill/divergence"] > 0 and metrics["reprompt/masked_fraction"] == 0
