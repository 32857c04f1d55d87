"""The notebooks run from top to bottom, on a CPU, with a tiny model, outside the clone."""

import json
import math
import os
import runpy
import subprocess
import sys

import nbformat
import pytest
import tiny
from nbclient import NotebookClient
from paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
# Settings that replace those of a notebook, small enough for a test.
SETTINGS = {
    "quickstart": """
OUT = "runs/test_notebook"
SMALL = {"steps": 1, "task.size": 32,
    "rollout.prompts_per_step": 4, "rollout.max_completion_tokens": 160,
    "eval.k": 1, "eval.examples": 8, "eval.max_completion_tokens": 96}
OVERRIDES = [x for run in ("sdpo", "grpo") for name, value in SMALL.items()
    for x in (f"--runs.{run}.{name}", str(value))]
""",
    "epistemic": """
MODELS = {"tiny": MODEL}
QUESTIONS, ANSWERS, TOKENS = 2, 2, 8
""",
    "plan_tpu": """
TRAIN, TOPOLOGY, COMPILE, PRICE = "package:math/sdpo_qwen3_1_7b", "h100:8", False, 2.0
""",
}
DEV = runpy.run_path(str(ROOT / "dev" / "notebooks.py"))
RUNS = ("sdpo", "grpo")
# arXiv:2603.24472 counts substrings, in upper or lower case.
WORDS = (
    *("wait", "hmm", "perhaps", "maybe", "actually"),
    *("alternatively", "seems", "might", "likely", "check"),
)


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def executed(name, folder, model):
    """Returns the output of a notebook's cells as one text; its settings are small."""
    book = read(name)
    chosen = [c for c in book.cells if "settings" in c.metadata.get("tags", [])]
    assert len(chosen) == 1
    chosen[0].source = f"MODEL = {str(model)!r}\n{SETTINGS[name]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MPLBACKEND", "agg")
        NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    text = json.dumps(book.cells)
    assert "Traceback" not in text
    return text


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "says"),
    [("epistemic", ("per 1,000 tokens", "'likely': 1")), ("plan_tpu", ("chip",))],
)
def test_a_notebook_runs_from_top_to_bottom(name, says, tmp_path):
    text = executed(name, tmp_path, tiny.model_folder(tmp_path / "model"))
    assert all(words in text for words in says)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Returns the output of a small quickstart notebook, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("quickstart")
    return executed("quickstart", folder, model=None), folder / "runs" / "test_notebook"


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.heavy
@pytest.mark.parametrize("run", RUNS)
def test_quickstart_losses_are_finite_and_its_counts_those_of_the_texts(quickstart, run):
    folder = quickstart[1] / run / "0"
    steps = [m for m in lines(folder / "metrics.jsonl") if m["step"]]
    rows = lines(folder / "rollouts.jsonl")
    assert [m["step"] for m in steps] == [1] and len(rows) == 4 * 4
    for metrics in steps:
        assert all(
            math.isfinite(v) for n, v in metrics.items() if n.startswith(("loss/", "optim/"))
        )
        assert metrics["optim/skipped"] == 0
        mine = [row for row in rows if row["step"] == metrics["step"]]
        counted = [sum(row["completion"].lower().count(w) for w in WORDS) for row in mine]
        assert metrics["rollout/epistemic_per_response"] == pytest.approx(sum(counted) / 16)
        assert metrics["rollout/length"] == pytest.approx(sum(r["length"] for r in mine) / 16)
        assert metrics["rollout/correct"] == pytest.approx(sum(r["correct"] for r in mine) / 16)


@pytest.mark.heavy
def test_the_shipped_model_reasons_and_reads_a_solution(quickstart):
    rows = lines(quickstart[1] / "sdpo" / "0" / "rollouts.jsonl")
    first = [row for row in rows if row["step"] == 1]
    assert sum(row["correct"] for row in first) >= 3  # of 16; two in five are right
    assert sum("</think>" in row["completion"] for row in first) >= 12
    assert any("Correct solution" in (row.get("reprompt") or "") for row in first)


@pytest.mark.heavy
def test_quickstart_puts_both_trainings_into_one_table_and_report(quickstart):
    text, out = quickstart
    before = [lines_of[0]["accuracy"] for lines_of in map(evaluations, (out / r for r in RUNS))]
    assert before[0] == before[1]
    table = (out / "coverage.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == ["before", *RUNS]
    assert "divide: score" in table[0] and table[0] in text
    assert "report.html (32 rollouts" in text and (out / "report.html").stat().st_size > 100_000


def evaluations(folder):
    return json.loads((folder / "0" / "evaluations.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_in_colab_and_begins_with_the_same_installation(name):
    book = read(name)
    assert book.cells[0].source.startswith(DEV["badge"](name) + "\n\n# ")
    assert book.cells[1].source == read(NAMES[0]).cells[1].source


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_small_and_without_errors(name):
    outputs = [one for cell in read(name).cells for one in cell.get("outputs", ())]
    assert not [one for one in outputs if one.output_type == "error"]
    assert sum(len(json.dumps(one)) for one in outputs) < 300_000


INSTALLED = """
import importlib.util, pathlib, shutil, subprocess
there = {there!r}
importlib.util.find_spec = lambda name: "jax_cuda12_plugin" in there and name[:3] == "jax" or None
pathlib.Path.glob = lambda self, pattern: [p for p in there if p.startswith(f"{{self}}/")]
shutil.which = lambda name: name if "driver" in there else None
class Done:
    returncode, stdout = {code}, there.get("driver", "")
def run(command, **options):
    if command[0] != "nvidia-smi":
        print(command[-1])
    return Done
subprocess.run = run
"""


@pytest.mark.parametrize(
    ("source", "there", "wanted"),
    [
        ("", {}, "sdjax[plots,puzzles]"),
        ("", {"driver": "550.54.15\n"}, "sdjax[plots,puzzles,cuda12]"),
        ("", {"driver": "580.1\n580.1\n"}, "sdjax[plots,puzzles,cuda13]"),
        ("", {"driver": "580.1", "jax_cuda12_plugin": 1}, "sdjax[plots,puzzles,cuda12]"),
        ("", {"driver": "No devices were found"}, "sdjax[plots,puzzles]"),
        ("", {"/dev/accel0": 1}, "sdjax[plots,puzzles,tpu]"),
        ("", {"/dev/vfio/0": 1, "driver": "580"}, "sdjax[plots,puzzles,tpu]"),
        ("clone", {}, "clone[plots,puzzles]"),
        ("https://a.b/c.whl", {}, "sdjax[plots,puzzles] @ https://a.b/c.whl"),
    ],
)
def test_the_first_cell_installs_the_extra_of_the_runtime(source, there, wanted):
    cell = read(NAMES[0]).cells[1].source
    environment = {k: v for k, v in os.environ.items() if k != "SDJAX_SOURCE"}
    if source:
        environment["SDJAX_SOURCE"] = source
    for code in (0, 1):
        script = INSTALLED.format(there=there, code=code) + cell
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.stdout == f"{wanted}\n", done.stderr
        assert done.returncode == code and ("pip cannot install it" in done.stderr) == bool(code)
