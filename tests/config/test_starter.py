"""`sdjax init NAME` writes a config, a reward and rows that a run takes as they are."""

import importlib
import sys
from pathlib import Path

import pytest

from sdjax import tasks
from sdjax.config import starter
from sdjax.config.load import load
from sdjax.errors import UserError
from sdjax.main import main


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working directory, for a copy whose reward another test may have imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "demo_reward", raising=False)
    return tmp_path


def test_three_files_are_written_and_the_command_is_shown(empty, capsys):
    assert main(["init", "demo"]) == 0
    assert sorted(path.name for path in empty.iterdir()) == [
        "demo.jsonl",
        "demo.py",
        "demo_reward.py",
    ]
    assert capsys.readouterr().out.endswith("--config demo.py\n")


@pytest.mark.parametrize("given", ["demo", "demo.py", "new/folder/demo"])
def test_nothing_of_the_template_is_left_in_the_copies(empty, given):
    files = starter.write(given)
    texts = [file.read_text() for file in files]
    assert not [text for text in texts if "mine" in text.lower().replace("demo", "")]
    assert f"sdjax --config {given.removesuffix('.py')}.py" in "".join(texts)


def test_the_copy_loads_with_its_rows_and_its_reward(empty):
    starter.write("demo")
    job = load("demo.py")
    task = tasks.load(job.task, job.data)
    assert (len(task.train), len(task.held_out), task.skipped) == (64, 16, ())
    parts = [{e.messages[0]["content"] for e in part} for part in (task.train, task.held_out)]
    assert not parts[0] & parts[1]
    # The question as the row has it, since nothing is asked for beside it.
    numbers, _, target = task.train[0].answer.partition(" = ")
    question = task.train[0].messages[0]["content"]
    assert question.endswith(f" to make {target}.")
    assert all(number in question for number in numbers.split())
    wrong = task.grade("I do not know.", task.train[0], truncated=False)
    assert (wrong.reward, wrong.correct) == (0.0, False)


def test_a_long_correct_answer_earns_half(empty, monkeypatch):
    starter.write("demo")
    monkeypatch.syspath_prepend(empty)
    demo = importlib.import_module("demo_reward")
    row = {"answer": "3 4 = 12"}
    texts = {words: f"{'Hmm. ' * words}\nAnswer: 3 * 4" for words in (1, demo.LONG)}
    earned = [demo.reward(text, row, truncated=False) for text in texts.values()]
    assert earned == [1.0, 0.5]


def test_an_existing_file_is_kept(empty, capsys):
    Path("demo.jsonl").write_text("mine")
    assert main(["init", "demo"]) == 2
    assert "demo.jsonl exists" in capsys.readouterr().err
    assert [path.name for path in empty.iterdir()] == ["demo.jsonl"]
    assert Path("demo.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("my-task", "must be a letter, then letters, digits and _"),
        ("", "must be a letter"),
        ("json", "json is a Python module, which json.py would hide; choose another"),
        ("sdjax", "such as my_sdjax"),
    ],
)
def test_a_name_that_no_module_can_have_is_refused(given, said, empty):
    with pytest.raises(UserError) as caught:
        starter.write(given)
    assert said in str(caught.value) and not [*empty.iterdir()]


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--force"]])
def test_init_takes_one_name(arguments, capsys):
    assert main(["init", *arguments]) == 2
    assert "init takes one name" in capsys.readouterr().err
