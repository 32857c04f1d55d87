"""What README shows works as it is printed."""

import importlib
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import learning
import numpy as np
import pytest
from paths import ROOT

from sdjax import config, tasks
from sdjax.config.load import load, override
from sdjax.main import launch_flags
from sdjax.objectives import divergences, token_weights

README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def added(file):
    """Returns the name and the function that README's diff of a file adds."""
    diff = re.search(rf"```diff\n--- a/{file}\n(.*?)```", README, re.DOTALL)[1]
    lines = [line[1:] for line in diff.splitlines() if re.match(r"\+(?!\+\+)", line)]
    code, entry = lines[:-1], lines[-1]
    name, function = re.fullmatch(r'\s+"(\w+)": (\w+),', entry).groups()
    space = {"jax": jax, "jnp": jnp}
    exec("\n".join(code), space)
    return name, space[function]


def test_the_divergence_of_readme_trains(monkeypatch):
    name, function = added("sdjax/objectives/divergences.py")
    monkeypatch.setitem(divergences.DIVERGENCES, name, function)
    cfg = learning.train_config(loss={"divergence": name})
    metrics = learning.Learner(cfg, learning.make_mesh()).update(learning.pack(cfg))
    # The squared Hellinger distance lies between 0 and 1.
    assert 0 < metrics["distill/divergence"] < 1 and metrics["optim/grad_norm"] > 0


@pytest.mark.heavy
def test_the_token_weighting_of_readme_trains(monkeypatch):
    name, function = added("sdjax/objectives/token_weights.py")
    monkeypatch.setitem(token_weights.TOKEN_WEIGHTS, name, function)
    losses = {}
    for scheme in (name, "uniform"):
        cfg = learning.train_config(loss={"token_weights": scheme})
        learner = learning.Learner(cfg, learning.make_mesh())
        losses[scheme] = learner.update(learning.pack(cfg))["loss/total"]
    # No completion of these tests reaches 32 tokens, so all of them weigh 1.
    np.testing.assert_allclose(losses[name], losses["uniform"], rtol=1e-6)


def commands():
    """Yields the arguments of every sdjax command in README and docs, once each."""
    found = set()
    for doc in DOCS:
        text = re.sub(r"\\\n\s*", "", doc.read_text())
        for line in re.findall(r"python -m sdjax\.main (--config [^`\n|&]*)", text):
            found.add(line.strip())
    return sorted(c for c in found if "FILE" not in c)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, file, *rest = launch_flags(shlex.split(command))[1]
    override(load(Path(file)), rest, prog="sdjax")


def test_the_task_of_the_docs_works(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "tasks.md").read_text()
    code = re.search(r"sdjax/tasks/reverse\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "reverse_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    task = tasks.load(importlib.import_module("reverse_of_the_docs").Reverse(), config.Data())
    assert len(task.train) == 3 and len(task.held_out) == 1
    one = task.held_out[0]
    assert task.grade("It is duolc", one, truncated=False).correct
    assert task.grade("It is cloud", one, truncated=False).feedback == "Spell it first."


def test_every_config_that_readme_names_exists():
    for name in re.findall(r"`(configs/[\w/]+\.py)`", README):
        assert (ROOT / name).exists(), name
