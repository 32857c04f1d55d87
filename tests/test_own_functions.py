"""Names of users' functions, from modules, config files and notebooks."""

import functools
import sys
import types

import pytest

from sdjax import own_functions
from sdjax.config.load import load
from sdjax.errors import UserError

CONFIG = """
import functools
from sdjax.config import Model, Train
from sdjax.tasks.math import Math
{body}
config = Train(out="x", task=Math(train="a.jsonl", {fields}), model=Model(path="m"))
"""


def loaded(folder, body, fields):
    file = folder / "mine.py"
    file.write_text(CONFIG.format(body=body, fields=fields))
    return load(file).task


def test_a_function_of_a_module_is_named_by_it_and_a_text_stays():
    assert own_functions.name_of(functools.wraps, "f") == "functools:wraps"
    assert own_functions.name_of("a.b:c", "f") == "a.b:c"


@pytest.mark.parametrize(
    "body",
    [
        "def good(completion, row): return 1",
        "good = lambda completion, row: 1",
        "def any(n):\n    def inner(completion, row): return n\n    return inner\ngood = any(3)",
        "def any(completion, row, n): return n\ngood = functools.partial(any, n=2)",
        "class Any:\n    def __call__(self, completion, row): return 1\ngood = Any()",
    ],
)
def test_what_a_config_file_binds_to_a_name_is_named_by_its_file(tmp_path, body):
    assert loaded(tmp_path, body, "reward=good").reward == "mine.py:good"


def test_weights_keep_the_names_of_their_functions(tmp_path):
    task = loaded(tmp_path, "def g(c, r): return 1", 'rewards={g: 2, "grader": 0.5}')
    assert task.rewards == {"mine.py:g": 2.0, "grader": 0.5}


@pytest.mark.parametrize(
    ("body", "fields", "says"),
    [
        ("", "reward=lambda c, r: 1", "task.reward is <lambda>, which no module holds by name"),
        ("", "reward=3", "task.reward is 3: must be a function or its name"),
        ("", "reward='brevity'", "task.reward is 'brevity': must be module:function"),
        ("", "reward='a:b', rewards={'c:d': 1}", "give either task.reward or task.rewards"),
        ("", "rewards={'c:d': 'e'}", "task.rewards has the weight 'e': must be a number"),
        ("", "rewards={'c:d': float('nan')}", "task.rewards.c:d is nan"),
        ("def g(c, r): 1", "rewards={g: 1, 'mine.py:g': 1}", "names a function twice"),
        ("", "grader='nath'", "task.grader is 'nath': must be one of math, math_reference"),
        ("", "reward='judge'", "task.judge.url is None: the reward judge needs a url"),
        ("", "reward_timeout_s=0.0", "task.reward_timeout_s is 0.0: must be positive"),
    ],
)
def test_a_reward_that_no_run_can_use_is_refused_in_one_line(tmp_path, body, fields, says):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, body, fields)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_function_of_a_notebook_is_refused(monkeypatch):
    notebook = types.ModuleType("__main__")
    exec("def good(c, r): return 1", vars(notebook))
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    with pytest.raises(UserError, match=r"good of a notebook .* write it into a file"):
        own_functions.name_of(notebook.good, "task.reward")


def test_functions_are_searched_beside_the_config_file_first(tmp_path):
    loaded(tmp_path, "", "reward=''")
    assert own_functions.paths()[0] == str(tmp_path.resolve())
