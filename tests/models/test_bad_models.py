"""Every mistake in models, checkpoints and answers ends the program with one line."""

import shutil

import pytest
import tiny
from mistake_tables import MODELS, PATHS, cut, rewrite, wrong_model, wrong_path
from mistakes import CONFIG, EVALUATE, EXPORT, Attempt, says

from sdjax.main import main


@pytest.fixture
def attempt(tmp_path, model, capsys):
    return Attempt(tmp_path, model, capsys)


@pytest.mark.parametrize("kind", MODELS)
def test_a_broken_model_folder_is_named(attempt, kind):
    wrong_model(attempt, *MODELS[kind])


def test_a_folder_of_adapters_names_their_base(attempt):
    folder = attempt.folder / "adapters"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    attempt.model = str(folder)
    says(attempt(), str(folder), "adapter_config.json", "adapters of org/base", "merge")


@pytest.mark.parametrize("kind", PATHS)
def test_a_model_that_is_not_there_is_named(attempt, kind):
    wrong_path(attempt, *PATHS[kind])


def test_a_hub_that_is_not_reached_is_named(attempt, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    attempt.model = "someone/some-model"
    says(attempt(), "model.path is 'someone/some-model'", "not to be had from the hub")


UNEVALUATED = ["--eval.every", "0", "--eval.at_ends", "False"]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """Returns the directory of a training of one step."""
    folder = tmp_path_factory.mktemp("finished")
    attempt = Attempt(folder, model, None)
    assert main(["--config", str(attempt.write(CONFIG, "file")), *UNEVALUATED]) == 0
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


@pytest.mark.heavy
@pytest.mark.parametrize("kind", RESUMED)
def test_a_run_that_cannot_be_gone_on_with_stays_as_it_was(attempt, finished, kind):
    args, change, words = RESUMED[kind]
    shutil.copytree(finished, attempt.out)
    if change:
        change(attempt)
    says(attempt(*args, *UNEVALUATED), *words)


EXPORTS = {
    "no run": (lambda run: shutil.rmtree(run), [], ["made", "no config.json"]),
    "a config cut": (cut("config.json", 30), [], ["config.json", "not JSON"]),
    "no training": (rewrite("config.json", b'{"class": "Prepare"}'), [], ["not of a training"]),
    "no such step": (lambda run: None, ["--step", "7"], ["step is 7", "are 1"]),
    "no checkpoint": (
        lambda run: shutil.rmtree(run / "checkpoints"), [], ["run is", "no checkpoints", "every"]
    ),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("kind", EXPORTS)
def test_a_run_that_cannot_be_exported_is_named(attempt, finished, kind):
    change, args, words = EXPORTS[kind]
    shutil.copytree(finished, attempt.folder / "made")
    change(attempt.folder / "made")
    says(attempt(*args, config=EXPORT), *words)


@pytest.mark.heavy
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
