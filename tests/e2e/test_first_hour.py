"""The first hour of a newcomer: its script runs what the pages print, and its files work."""

import re
import runpy
from dataclasses import replace

import pytest
import runs
import snippets
import tiny
from paths import ROOT

from sdjax import config, tasks
from sdjax.config import starter
from sdjax.config.load import load
from sdjax.jobs import train_job

PAGE = snippets.HOW_TO / "first-hour.md"
SCRIPT = ROOT / "dev" / "first_hour.sh"


def steps():
    """Returns the commands of the script that a newcomer types."""
    return re.findall(r"^step '(.*)'$", SCRIPT.read_text(), re.MULTILINE)


def shown(page):
    """Returns the lines of a page's blocks of commands, which name no language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line for language, text in blocks if not language for line in text.splitlines()]


def test_the_script_runs_the_commands_of_its_page_in_their_order():
    assert steps() == shown(PAGE)


def test_the_first_hour_takes_fewer_than_ten_commands():
    assert 0 < len(steps()) < 10


def test_the_rows_and_the_reward_of_the_page_fit_the_config_of_init(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    starter.write("mine")
    snippets.write(PAGE, tmp_path)
    job = load("mine.py")
    task = tasks.load(replace(job.task, held_out=2), job.data)
    assert (len(task.train), len(task.held_out), task.skipped) == (6, 2, ())
    (example,) = [e for e in task.train + task.held_out if e.answer == "3 4 5 = 17"]
    told = ("Answer: 3 * 4 + 5", "Hmm, maybe.\nAnswer: 3 * 4 + 5", "Answer: 3 + 4 + 5")
    grades = [task.grade(text, example, truncated=False) for text in told]
    assert [grade.reward for grade in grades] == [1.0, 0.8, 0.0]
    assert [grade.correct for grade in grades] == [True, True, False]


@pytest.mark.heavy
def test_the_script_of_the_page_loads_the_adapters(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    folder = tiny.model_folder(tmp_path / "tiny")
    job = runs.job(folder, "runs/mine", steps=1, lora=config.Lora(rank=4))
    train_job.run(replace(job, checkpoint=config.Checkpoint(every=0)))
    snippets.write(PAGE, tmp_path)
    capsys.readouterr()
    runpy.run_path("use_adapter.py")
    said = re.search(r"merged model: (\S+) nats", capsys.readouterr().out)
    assert float(said[1]) < 0.1
