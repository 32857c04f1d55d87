"""README and docs: what they show works as it is printed."""

import importlib
import re
import shlex

import learning
import numpy as np
import pytest
import snippets
from paths import ROOT

from sdjax import config, tasks
from sdjax.config import packaged
from sdjax.config.load import load, override
from sdjax.main import launch_flags
from sdjax.objectives import divergences

README = ROOT / "README.md"
PAGES = [*snippets.DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

pytestmark = pytest.mark.usefixtures("own_tables")


def block_with(text):
    """Returns the one Python block of README that contains a text."""
    (code,) = [code for code in snippets.python(README) if text in code]
    return code


def defined(code):
    """Returns the names that a block of README defines."""
    space = {}
    exec(code, space)
    return space


def test_readme_fits_one_sitting():
    assert len(README.read_text().split()) < 1400


@pytest.mark.parametrize("code", [c for c in snippets.python(README) if snippets.is_config(c)])
def test_a_config_of_readme_loads(code, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    assert isinstance(load(tmp_path / "mine.py"), config.Train)


def test_the_divergence_of_readme_keeps_the_contract():
    import contracts

    made = defined(block_with("DIVERGENCES["))
    assert divergences.DIVERGENCES["hellinger"] is made["hellinger"]
    contracts.check_divergence(made["hellinger"], config.Loss(divergence="hellinger"))


@pytest.mark.heavy
def test_the_divergence_of_readme_trains():
    defined(block_with("DIVERGENCES["))
    cfg = learning.train_config(loss={"divergence": "hellinger"})
    metrics = learning.Learner(cfg, learning.make_mesh()).update(learning.pack(cfg))
    # The squared Hellinger distance lies between 0 and 1.
    assert 0 < metrics["distill/divergence"] < 1 and metrics["optim/grad_norm"] > 0


def test_the_token_weighting_of_readme_keeps_the_contract():
    import contracts

    made = defined(block_with("TOKEN_WEIGHTS["))
    contracts.check_token_weights(made["first_tokens"], config.Loss(token_weights="first_tokens"))


@pytest.mark.heavy
def test_the_token_weighting_of_readme_trains():
    defined(block_with("TOKEN_WEIGHTS["))
    losses = {}
    for scheme in ("first_tokens", "uniform"):
        cfg = learning.train_config(loss={"token_weights": scheme})
        learner = learning.Learner(cfg, learning.make_mesh())
        losses[scheme] = learner.update(learning.pack(cfg))["loss/total"]
    # No completion of these tests reaches 32 tokens, so all of them weigh 1.
    np.testing.assert_allclose(losses["first_tokens"], losses["uniform"], rtol=1e-6)


def commands():
    """Returns the arguments of every sdjax command in README and docs, once each."""
    found = set()
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        # These files are the reader's; `sdjax init mine` writes mine.py.
        own = {"FILE", "NAME.py", "mine.py", *re.findall(r"Write `(\w+\.py)`", text)}
        for line in re.findall(r"\b(?:python -m sdjax\.main|sdjax) (--config [^`\n|&]*)", text):
            if not own & set(line.split()):
                found.add(line.strip())
    return sorted(c for c in found if "package:NAME" not in c)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, file, *rest = launch_flags(shlex.split(command))[1]
    override(load(packaged.place(file)), rest, prog="sdjax")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in snippets.links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in snippets.anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    written = snippets.files(page)
    for name in re.findall(r"`((?:configs|sdjax|tests|dev|tpu)/[\w/.-]+?\.\w+)`", text):
        assert "ROOM" in name or name in written or (ROOT / name).exists(), name


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
