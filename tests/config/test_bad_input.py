"""Every mistake in configs and data ends the program with one line that names it and the remedy.

Exit code 2, no traceback, and nothing half-written: what `out` names does not exist afterwards, or
is what it was. Models and checkpoints: test_bad_models.
"""

import marks
import mistake_tables as tables
import pytest
from mistakes import CONFIG, JOBS, Attempt, says

from sdjax.main import main


@pytest.fixture
def attempt(tmp_path, model, capsys):
    return Attempt(tmp_path, model, capsys)


@pytest.mark.parametrize(("args", "words"), marks.heavy_but_every_third(tables.SETTINGS))
def test_an_impossible_setting_is_named_with_its_remedy(attempt, args, words):
    tables.wrong_setting(attempt, args, words)


@pytest.mark.parametrize(("args", "words"), tables.GENERATORS)
def test_a_generator_that_cannot_be_is_named(attempt, args, words):
    tables.wrong_generator(attempt, args, words)


@pytest.mark.parametrize("value", ["two", "2.5", "True"])
def test_an_option_of_another_type_than_the_generator_s_is_named(attempt, value):
    without = CONFIG.replace("task=TASK", "task=Arithmetic(size=20, held_out=6)")
    line = attempt("--task.options", "min_terms", value, task="sums", config=without)
    shown = value if value == "2.5" else repr(value)
    assert line == f"task.options.min_terms is {shown}: must be a whole number"


@pytest.mark.parametrize(("old", "new", "words"), marks.heavy_but_every_third(tables.CONFIG_FILES))
def test_a_mistake_in_the_config_file_is_named_with_its_line(attempt, old, new, words):
    tables.wrong_config_file(attempt, old, new, words)


@pytest.mark.parametrize("kind", marks.heavy_but([*tables.DATA][::3], tables.DATA))
def test_wrong_data_is_named_by_file_and_row(attempt, kind):
    tables.wrong_data(attempt, *tables.DATA[kind])


@pytest.mark.parametrize(("args", "words"), marks.heavy_but_every_third(tables.ARGUMENTS))
def test_a_wrong_argument_is_answered_with_the_field_it_means(attempt, args, words):
    tables.wrong_setting(attempt, args, words)


@pytest.mark.parametrize(("job", "args", "words"), tables.OTHER_JOBS)
def test_a_mistake_in_another_job_is_named(attempt, job, args, words):
    tables.wrong_job(attempt, job, args, words)


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


# Jobs whose `out` is a directory of results, each with data or a model that is not there.
WRITERS = {
    "train": CONFIG,
    **{name: JOBS[name] for name in ("sft", "study", "evaluate", "preflight", "bench")},
}


@pytest.mark.parametrize("job", WRITERS)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_loaded(attempt, job):
    for name in ("train.json", "test.json"):
        (attempt.folder / name).unlink()
    attempt.model = "gone"
    says(attempt("--out", "/proc/run", config=WRITERS[job]), "out is '/proc/run'", "another")
    assert not attempt.out.exists()
    attempt.out.mkdir()
    (attempt.out / "metrics.jsonl").write_text("{}\n")
    says(attempt(config=WRITERS[job]), f"out is '{attempt.out}': it holds a run", "another --out")


def test_debug_shows_the_traceback(attempt, capsys):
    assert main(["--config", str(attempt.write(CONFIG, "file")), "--steps", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
