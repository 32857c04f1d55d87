"""A task in a config file, with its grader and data outside the package, as in docs/tasks.md."""

import json
import re

import pytest
from paths import ROOT

from sdjax import config, tasks
from sdjax.config.load import load, override
from sdjax.errors import UserError
from sdjax.main import main

DOCS = (ROOT / "docs" / "tasks.md").read_text("utf-8")


@pytest.fixture
def capitals(tmp_path):
    """Returns the config file of the docs' example, with its data in the same folder."""
    rows = re.search(r"`capitals\.jsonl`:\n\n```json\n(.*?)```", DOCS, re.DOTALL)[1]
    code = re.search(r"`capitals\.py` .*?```python\n(.*?)```", DOCS, re.DOTALL)[1]
    (tmp_path / "capitals.jsonl").write_text(rows)
    (tmp_path / "capitals.py").write_text(code)
    return tmp_path / "capitals.py"


def test_the_capitals_of_the_docs_load_and_grade(capitals):
    job = load(capitals)
    task = tasks.load(job.task, job.data)
    assert [len(task.train), len(task.held_out), task.skipped] == [4, 2, ()]
    italy, south_africa = task.train[1], task.held_out[1]
    assert italy.messages[0]["content"] == "What is the capital of Italy?"
    assert json.loads(italy.answer) == ["Rome", "Roma"]
    assert task.grade("Si chiama Roma.", italy, truncated=False).correct
    assert task.grade("cape town", south_africa, truncated=False).correct
    wrong = task.grade("Milan", italy, truncated=False)
    assert (wrong.reward, wrong.feedback) == (0.0, "Name one city, the capital.")


def test_the_fields_of_a_task_in_a_config_file_can_be_overridden(capitals, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"country": "Peru", "capitals": ["Lima"]}\n' * 3)
    arguments = ["--task.rows", str(tmp_path / "more.jsonl"), "--task.held_out", "1"]
    job = override(load(capitals), arguments, prog="sdjax")
    task = tasks.load(job.task, job.data)
    assert [len(task.train), len(task.held_out)] == [2, 1]


def test_a_bad_row_of_a_task_in_a_config_file_is_named(capitals):
    with capitals.with_suffix(".jsonl").open("a") as file:
        file.write('{"country": "Peru", "capitals": "Lima"}\n')
    job = load(capitals)
    with pytest.raises(UserError, match=r"capitals.jsonl:7: field 'capitals' is not a list"):
        tasks.load(job.task, job.data)


@pytest.mark.heavy
def test_the_capitals_of_the_docs_train(capitals, tmp_path):
    import tiny  # It loads jax, which no other test of this folder needs.

    model = tiny.model_folder(tmp_path / "model")
    out = tmp_path / "run"
    arguments = ["--model.path", str(model), "--out", str(out), "--steps", "1"]
    assert main(["--config", str(capitals), *arguments]) == 0
    assert (out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "mine.py defines Mine but no function load; add `def load(cfg, data)`, which returns"),
        ("def load(cfg, data): pass\n", "its load returned NoneType; it must return a sdjax.tasks"),
    ],
)
def test_a_task_class_without_a_load_that_returns_a_task_is_one_line(tmp_path, body, says):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from sdjax.config import Model, TaskConfig, Train\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(TaskConfig):\n"
        "    '''Mine.'''\n"
        f"{body}"
        "config = Train(out='x', task=Mine(), model=Model(path='m'))\n"
    )
    job = load(tmp_path / "mine.py")
    with pytest.raises(UserError) as error:
        tasks.load(job.task, job.data)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_task_config_itself_is_no_task():
    with pytest.raises(UserError, match=r"task is TaskConfig\(\): name a class that inherits"):
        tasks.load(config.TaskConfig(), config.Data())
