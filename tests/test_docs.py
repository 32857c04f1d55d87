"""The how-to pages: every snippet runs, on a tiny model."""

import importlib
import json
import math
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import runs
import snippets
import tiny

from sdjax import config, tasks
from sdjax.config.load import load
from sdjax.objectives import divergences, token_weights

PAGES = {page.stem: page for page in sorted(snippets.HOW_TO.glob("*.md"))}
PAGES["tasks"] = snippets.ROOT / "docs" / "tasks.md"
CONFIGS = [
    pytest.param(page, name, id=f"{page}-{name}")
    for page, path in PAGES.items()
    for name, code in snippets.files(path).items()
    if name.endswith(".py") and snippets.is_config(code)
]

pytestmark = pytest.mark.usefixtures("own_tables")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with room for a reprompt, in which each byte is a token."""
    return tiny.model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=2048)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Returns a function that writes a page's files into an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda page: snippets.write(PAGES[page], tmp_path)


def small(job, model):
    """Returns the job for one step or update of a tiny model."""
    changes = {"model": replace(job.model, path=str(model)), "out": "runs/out"}
    if isinstance(job, config.SFT):
        return replace(job, steps=1, max_tokens=512, **changes)
    return replace(
        job,
        steps=1,
        rollout=replace(job.rollout, max_prompt_tokens=512, max_completion_tokens=4),
        # Any answer may be a demonstration, since a random model gives no right one.
        reprompt=replace(job.reprompt, max_tokens=1024, success_threshold=-1.0),
        eval=replace(job.eval, k=1, examples=2, max_completion_tokens=4),
        checkpoint=config.Checkpoint(every=0, export=False),
        log=config.Log(progress=False, to=()),
        **changes,
    )


def run(job):
    """Runs a job in this process."""
    with runs.compiled_once():
        importlib.import_module(f"sdjax.jobs.{type(job).__name__.lower()}_job").run(job)


def test_the_how_to_pages_have_configs():
    assert {param.values[0] for param in CONFIGS} >= {"own-data", "own-reward", "own-divergence"}


def test_every_python_block_of_the_how_to_pages_is_run():
    scripts = (
        "read-a-run",
    )  # its blocks have no names; test_the_scripts_that_read_a_run runs them
    for name, page in PAGES.items():
        if name not in scripts:
            named = [text for file, text in snippets.files(page).items() if file.endswith(".py")]
            assert snippets.python(page) == named, name


@pytest.mark.parametrize(("page", "name"), CONFIGS)
def test_a_config_of_the_docs_loads(page, name, written):
    written(page)
    job = load(Path(name))
    task = None if job.task is None else tasks.load(job.task, job.data)
    assert task is None or (task.train and task.held_out)


def test_a_config_can_start_from_its_neighbour(tmp_path):
    (code,) = snippets.python(snippets.ROOT / "docs" / "command-line.md")
    shutil.copy(snippets.ROOT / "configs" / "smollm2" / "cpu.py", tmp_path)
    (tmp_path / "mine.py").write_text(code)
    job = load(tmp_path / "mine.py")
    assert job.loss.distillation == 0 and job.steps == load(tmp_path / "cpu.py").steps


@pytest.mark.heavy
@pytest.mark.parametrize(("page", "name"), CONFIGS)
def test_a_config_of_the_docs_trains(page, name, written, model):
    written(page)
    run(small(load(Path(name)), model))
    last = runs.lines(Path("runs/out/metrics.jsonl"))[-1]
    if "sft/loss" in last:
        assert math.isfinite(last["sft/loss"])
    else:
        assert last["optim/skipped"] == 0 and last["optim/grad_norm"] > 0
        assert last["distill/divergence"] > 0


def test_the_divergence_of_the_docs_keeps_the_contract(written):
    import contracts

    written("own-divergence")
    loss = load(Path("renyi.py")).loss
    for order in (0.5, 2.0):
        contracts.check_divergence(
            divergences.DIVERGENCES["renyi"], replace(loss, renyi_order=order)
        )


def test_the_token_weighting_of_the_docs_keeps_the_contract(written):
    import contracts

    written("own-divergence")
    loss = load(Path("early.py")).loss
    contracts.check_token_weights(token_weights.TOKEN_WEIGHTS["first_tokens"], loss)


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("try_brief.py", ["1.0 0.5 Correct, but too long."]),
        ("try_rules.py", ["True", "True"]),
    ],
)
def test_a_script_about_rewards_prints_what_its_page_says(script, printed, written, capsys):
    written("own-reward")
    runpy.run_path(script)
    assert capsys.readouterr().out.splitlines()[-len(printed) :] == printed


def test_the_task_in_a_config_file_grades(written):
    written("tasks")
    job = load(Path("capitals.py"))
    task = tasks.load(job.task, job.data)
    one = task.held_out[0]
    right, wrong = (
        task.grade(text, one, truncated=False) for text in (json.loads(one.answer)[0], "No idea.")
    )
    assert right.correct and not wrong.correct and wrong.feedback == "Name one city, the capital."


@pytest.mark.heavy
def test_the_scripts_that_read_a_run(tmp_path, monkeypatch, model, capsys):
    monkeypatch.chdir(tmp_path)
    job = runs.job(model, Path("runs/quickstart/sdpo/0"), log=config.Log(to=()))
    run(replace(job, steps=1))
    capsys.readouterr()
    printed = []
    for code in snippets.python(PAGES["read-a-run"]):
        exec(compile(code, "read-a-run.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    metrics, _, scores = printed
    assert [line.split()[0] for line in metrics.splitlines()] == ["0", "1"]
    assert "| examples | 4 |" in scores and "avg@2" in scores


def test_the_family_of_the_docs_is_that_of_the_package(tmp_path):
    snippets.write(PAGES["own-model"], tmp_path)
    name = "sdjax/models/families/mistral.py"
    assert (tmp_path / name).read_text().strip() == (snippets.ROOT / name).read_text().strip()
