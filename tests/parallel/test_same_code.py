"""Processes that would run different code do not train: one line names the file."""

import pytest
import several

TASK = """
from dataclasses import dataclass

from sdjax import config
from sdjax.records import Example, Grade
from sdjax.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Sums(config.TaskConfig):
    pass


def grade(attempt):
    right = attempt.text.strip() == attempt.answer
    return Grade(reward=float(right), correct=right)


def load(cfg, data):
    def example(i):
        asked = ({"role": "user", "content": f"{i} + 1?"},)
        return Example(id=str(i), messages=asked, answer=str(i + 1), task="sums")

    examples = [example(i) for i in range(8)]
    return Task(name="sums", train=examples, held_out=[],
                grader=lambda attempts: [grade(attempt) for attempt in attempts])
"""
CONFIG = """
from sdjax.config import *
from sums_of_mine import Sums

config = Train(out="OUT", steps=1, task=Sums(held_out=0), model=Model(path="MODEL"))
"""


@pytest.mark.heavy
def test_a_grader_beside_the_config_that_differs_ends_both_processes_with_its_file(model, tmp_path):
    out = tmp_path / "out"
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
        (place / "sums_of_mine.py").write_text(TASK)
        (place / "c.py").write_text(CONFIG.replace("OUT", str(out)).replace("MODEL", str(model)))
    assert TASK.count(" == attempt.answer") == 1
    other = TASK.replace(" == attempt.answer", ".startswith(attempt.answer)")
    (places[1] / "sums_of_mine.py").write_text(other)
    first, second = several.run(["--config", "c.py"], cwd=places)
    said = "sums_of_mine.py: other code here than on process 0: give every host the same files"
    assert (first.code, second.code) == (2, 2), first.err[-3000:] + second.err[-3000:]
    assert f"sdjax: error: process 1 of 2: {said}" in first.err
    assert f"sdjax: error: {said}" in second.err
    assert "Traceback" not in first.err + second.err and not out.exists()
    assert max(first.seconds, second.seconds) < 60
