"""The notebooks run from top to bottom, on a CPU, with a tiny model."""

import json
import os
from pathlib import Path

import nbformat
import pytest
import tiny
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
# What stands in a notebook's own settings, small enough for a test.
SETTINGS = {
    "quickstart": """
OUT = "runs/test_notebook"
OVERRIDES = ["--steps", "2", "--model.path", MODEL, "--rollout.prompts_per_step", "2",
    "--rollout.max_prompt_tokens", "400", "--rollout.max_completion_tokens", "8",
    "--reprompt.max_tokens", "450", "--reprompt.success_threshold", "-1", "--eval.k", "1",
    "--eval.examples", "2", "--eval.max_completion_tokens", "8", "--task.held_out", "4"]
""",
    "epistemic": """
MODELS = {"tiny": MODEL}
QUESTIONS, ANSWERS, TOKENS = 2, 2, 8
""",
    "plan_tpu": """
TRAIN, TOPOLOGY, COMPILE, PRICE = "configs/math/sdpo_qwen3_1_7b.py", "h100:8", False, 2.0
""",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Returns a folder with what a clone of the repository has, but nothing that a run writes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("sdjax", "configs", "tpu", "notebooks", "pyproject.toml", ".git"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, clone, tmp_path, monkeypatch):
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "outputs are not kept"
    model = tiny.model_folder(tmp_path / "model")
    chosen = [c for c in book.cells if "settings" in c.metadata.get("tags", [])]
    assert len(chosen) == 1
    chosen[0].source = f"MODEL = {str(model)!r}\n{SETTINGS[name]}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(clone)}}).execute()
    text = json.dumps(book.cells)
    assert "Traceback" not in text
    if name == "quickstart":
        assert (clone / "runs" / "test_notebook" / "report.html").stat().st_size > 10_000
    if name == "epistemic":
        assert "per 1,000 tokens" in text and "'likely': 1" in text


def test_the_first_cell_makes_a_clone_where_there_is_none(tmp_path, monkeypatch):
    book = nbformat.read(ROOT / "notebooks" / f"{NAMES[0]}.ipynb", as_version=4)
    cells = [c for c in book.cells if c.cell_type == "code"][:1]
    assert all(
        nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[1].source
        == cells[0].source
        for name in NAMES
    )
    book.cells = [*cells, nbformat.v4.new_code_cell("import os; print(os.listdir('configs'))")]
    monkeypatch.setenv("SDJAX_SOURCE", str(ROOT))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT)]))
    NotebookClient(book, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "quickstart.py" in book.cells[1].outputs[0].text
    assert (tmp_path / "sdjax-clone" / "sdjax" / "main.py").exists()
