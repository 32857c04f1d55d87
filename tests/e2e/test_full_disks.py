"""Every job on a full, read-only or vanished directory: one line, and no half file."""

import functools
import json
import re
import shutil
import subprocess
import sys

import disks
import faults
import marks
import pytest
import report_runs
import runs
import tiny

from sdjax.main import main

pytestmark = pytest.mark.usefixtures("compiled_once")

IMPORTS = """
from dataclasses import replace
from pathlib import Path
import report_runs
import runs
from sdjax import config as c
from sdjax.tasks.countdown import Countdown

small = c.Model(path="MODEL", compute_dtype="float32", remat="none")
letters = runs.Letters(held_out=4)
few = c.Eval(every=2, k=2, examples=4, batch=2, max_completion_tokens=6)
sizes = dict(vocab_size=96, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
             num_attention_heads=2, num_key_value_heads=2, head_dim=4, max_position_embeddings=256)

def training(**changes):
    given = dict(steps=4, checkpoint={"every": 2, "export": True}, log={"to": ("tensorboard",)})
    return runs.job(Path("MODEL"), Path("OUT"), **given | changes)

"""
JOBS = {
    "train": "config = training()",
    "lora": """config = training(lora={"rank": 2}, steps=2)""",
    "sft": """config = c.SFT(out="OUT", source="ROWS", steps=4, batch=4, log_every=1,
    max_tokens=100, max_prompt_tokens=96, task=letters, eval=few, model=small,
    optim=c.Optim(microbatch=2, row_tokens=128, warmup_steps=0),
    checkpoint=c.Checkpoint(every=2), log=c.Log(progress=False))""",
    "evaluate": """config = c.Evaluate(out="OUT", task=runs.Letters(held_out=8), model=small,
    max_prompt_tokens=96, eval=replace(few, every=0, examples=0, batch=4, k=6))""",
    "profile": """config = c.Evaluate(out="OUT", task=runs.Letters(held_out=8), model=small,
    max_prompt_tokens=96, profile="OUT/profile", eval=replace(few, every=0, examples=0))""",
    "study": """config = c.Study(out="OUT", task=letters, problems=4, tried=4, solved_min=1,
    solved_max=2, model=small, max_prompt_tokens=96, eval=replace(few, every=0, examples=0))""",
    "sweep": """config = c.Sweep(out="OUT", values=(1, 2), report=True, runs={
    "a": training(steps=1, checkpoint={"every": 1, "export": False}, log={})})""",
    "export": """config = c.Export(run="RUN", out="OUT/model")""",
    "report": """config = c.Report(runs=("RUN",), out="OUT/report.html", plots="OUT/plots")""",
    "bench": """config = c.Bench(out="OUT", phases=("head",), prompts=(1, 2), repeats=1,
    shape=c.Shape(**sizes), model=replace(small, path=""), completion_tokens=8, prompt_tokens=8,
    reprompt_tokens=16)""",
    "plan": """config = c.Plan(out="OUT", train=("TRAINING",), compile=False,
    topology=("v5e:2x2", "v5e:2x4"), change=("optim.microbatch=8",))""",
    "prepare": """config = c.Prepare(out="OUT", name="made", splits={"train": "ROWS"})""",
    "traces": """config = c.Traces(out="OUT", rows=40, workers=1,
    tasks={"any": Countdown(size=64)})""",
}
RESUMED = ("train", "lora", "sft", "evaluate", "profile", "study", "sweep")
MADE_BEFORE = ("export", "report")  # Their `out` is a file or folder in a directory of the user.

# Job, what happens to the disk, and when: as the run enters this function for the n-th time. Then
# the path that the line names.
# An update that follows a save may meet the full disk before the save, so that the line names it.
CASES = [
    ("train", "full", "record", 1, "run.json"),
    ("train", "full", "metrics", 1, "metrics.jsonl"),
    ("train", "full", "answers", 2, "answers/000002.jsonl"),
    ("train", "full", "save", 1, ""),
    ("train", "full", "save", 2, "checkpoints/"),
    ("train", "full", "commit", 2, "checkpoints/4"),
    ("train", "full", "tensors", 1, "model"),
    ("train", "full", "tokenizer", 1, "model"),
    ("train", "full", "evaluations", 1, "evaluations.json"),
    ("train", "read-only", "update", 3, "answers/000004.jsonl"),
    ("train", "read-only", "save", 2, "checkpoints/"),
    ("train", "read-only", "tensors", 1, "model"),
    ("train", "gone", "load", 1, ""),
    ("train", "gone", "update", 3, ""),
    ("train", "gone", "commit", 1, ""),
    ("train", "gone", "save", 2, ""),
    ("train", "gone", "tensors", 1, "model"),
    ("lora", "full", "adapters", 1, "model_adapter"),
    ("sft", "full", "record", 1, "run.json"),
    ("sft", "full", "metrics", 1, "metrics.jsonl"),
    ("sft", "full", "answers", 2, "answers/000002.jsonl"),
    ("sft", "full", "save", 1, ""),
    ("sft", "full", "save", 2, "checkpoints/"),
    ("sft", "full", "tensors", 1, "model"),
    ("sft", "read-only", "save", 2, "checkpoints/"),
    ("sft", "gone", "metrics", 3, ""),
    ("sft", "gone", "commit", 1, ""),
    ("sft", "gone", "tensors", 1, "model"),
    ("evaluate", "full", "record", 1, "run.json"),
    ("evaluate", "full", "answers", 1, "answers.jsonl"),
    ("evaluate", "full", "answers", 2, "answers.jsonl"),
    ("evaluate", "full", "scores", 1, "scores.json"),
    ("evaluate", "read-only", "answers", 2, "answers.jsonl"),
    ("evaluate", "gone", "answers", 2, "answers.jsonl"),
    ("evaluate", "gone", "scores", 1, ""),
    ("profile", "full", "trace", 1, "profile"),
    ("profile", "read-only", "trace", 1, "answers.jsonl"),
    ("profile", "gone", "trace", 1, ""),
    ("study", "full", "answers", 1, "collected.jsonl"),
    ("study", "full", "answers", 3, "answers/unguided.jsonl"),
    ("study", "full", "study", 1, "scores.json"),
    ("study", "read-only", "answers", 3, "answers/unguided.jsonl"),
    ("study", "gone", "answers", 2, "collected.jsonl"),
    ("study", "gone", "study", 1, "scores.json"),
    ("sweep", "full", "save", 2, "a/2/checkpoints/1"),
    ("sweep", "full", "coverage", 1, "coverage.json"),
    ("sweep", "full", "page", 1, "report.html"),
    ("sweep", "gone", "training", 2, ""),
    ("sweep", "gone", "coverage", 1, ""),
    ("export", "full", "tensors", 1, "model"),
    ("export", "full", "adapters", 1, "model_adapter"),
    ("export", "full", "tokenizer", 1, "model"),
    ("export", "read-only", "tensors", 1, "model"),
    ("export", "gone", "tensors", 1, "model"),
    ("report", "full", "page", 1, "report.html"),
    ("report", "full", "plot", 2, "plots/"),
    ("report", "read-only", "page", 1, "report.html"),
    ("report", "gone", "page", 1, "report.html"),
    ("report", "gone", "plot", 1, "plots/"),
    ("bench", "full", "bench", 2, "bench.json"),
    ("bench", "gone", "bench", 2, "bench.json"),
    ("plan", "full", "plan", 1, "plan.md"),
    ("plan", "full", "plan", 4, "plan.json"),
    ("plan", "gone", "plan", 3, "plan.md"),
    ("prepare", "full", "rows", 2, ""),
    ("prepare", "read-only", "rows", 1, ""),
    ("prepare", "gone", "rows", 2, ""),
    ("traces", "full", "traces", 1, "model"),
    ("traces", "full", "traces", 3, "traces.jsonl"),
    ("traces", "read-only", "traces", 3, "traces.jsonl"),
    ("traces", "gone", "traces", 3, "traces.jsonl"),
]
SHORT = [
    ("evaluate", "full", "answers", 2, "answers.jsonl"),
    ("evaluate", "gone", "answers", 2, "answers.jsonl"),
    ("report", "full", "page", 1, "report.html"),
    ("plan", "full", "plan", 4, "plan.json"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a directory with a model and rows that every job reads."""
    folder = tmp_path_factory.mktemp("disks")
    tiny.model_folder(folder / "model", num_hidden_layers=1)
    rows = [
        {"prompt": f"{a} and {b}?", "completion": "so " * (a % 3) + str(a + b)}
        for a in range(4)
        for b in range(5)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_file(folder, job, out, run):
    """Writes the config file of a job, and of the training that it may read; returns it."""
    (folder / "training.py").write_text(_filled(folder, "train", folder / "unused", run))
    file = folder / f"{job}.py"
    file.write_text(_filled(folder, job, out, run))
    return file


def _filled(folder, job, out, run):
    values = {
        "MODEL": folder / "model",
        "ROWS": folder / "rows.jsonl",
        "TRAINING": folder / "training.py",
        "OUT": out,
        "RUN": run,
    }
    text = IMPORTS + JOBS[job]
    for name, value in values.items():
        text = re.sub(rf'"{name}(?=["/])', f'"{value}', text)
    return text


NOT_EQUAL = re.compile(r"(tensorboard|checkpoints|profile)/|(config|run|bench)\.json$")
"""Files that hold times, or are compared otherwise."""


def contents(out):
    """Returns what must be equal of two directories, by name: all but times and checkpoints."""
    found = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(file.relative_to(out))
        if name == "report.html" and (out / "coverage.json").exists():
            continue  # A sweep's page shows the times of its trainings.
        if file.name == "metrics.jsonl":
            found[name] = runs.timeless(file.parent)
        elif not NOT_EQUAL.search(name):
            # Some files name the directory.
            found[name] = file.read_bytes().replace(str(out.parent).encode(), b"PLACE")
    for step in sorted(out.glob("**/checkpoints/*")):
        found[str(step.relative_to(out))] = {
            "arrays": {k: v.tobytes() for k, v in runs.arrays(step).items()},
            "host": json.loads((step / "host" / "metadata").read_text()),
        }
    return found


def assert_equal(made, whole):
    a, b = contents(made), contents(whole)
    assert a.keys() == b.keys()
    assert not [name for name in a if a[name] != b[name]]


def left(disk):
    """Returns the files of a disk that are not whole."""
    return [
        str(p.relative_to(disk))
        for p in disk.rglob("*")
        if re.search(r"\.part$|\.partial$|\.old$|tmp|incomplete|owner\.json", p.name)
    ]


def assert_ended(code, errors, out, path):
    """Asserts that a job ended with one line that names the path."""
    other = re.compile(r"INFO:sdjax|.*(examples|splits)|\s*(\x1b\[A)?$")  # logs, bars of TFDS
    lines = [line for line in errors.splitlines() if not other.match(line)]
    assert code == 2, errors
    assert len(lines) == 1 and lines[0].startswith("sdjax: error: "), errors
    assert str(out / path) in lines[0], errors


@pytest.fixture(scope="module")
def started(job_server, folder):
    """Returns a function that runs a job, and one that returns its undisturbed directory."""
    kept = {}

    def start(job, out, *args, log=folder / "log", **fault):
        run = whole("lora") if job in MADE_BEFORE else folder
        file = config_file(folder, job, out, run)
        errors = folder / "errors"
        code = job_server.run("--config", str(file), *args, log=log, errors=errors, **fault)
        return code, errors.read_text()

    def whole(job):
        if job not in kept:
            kept[job] = folder / "whole" / job / "out"
            (kept[job] if job in MADE_BEFORE else kept[job].parent).mkdir(parents=True)
            code, errors = start(job, kept[job])
            assert code == 0, errors
        return kept[job]

    return start, whole


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("job", "fault", "moment", "nth", "path"), CASES)
def test_a_job_that_loses_its_disk_ends_with_one_line_and_goes_on_when_it_has_it_back(
    started, tmp_path, job, fault, moment, nth, path
):
    start, whole = started
    undisturbed = whole(job)
    with disks.mounted(tmp_path / "disk", "-o", "size=16m") as disk:
        out = disk / "out"
        if job in MADE_BEFORE:
            out.mkdir()
        names = {"disk": disk, "out": out}
        code, errors = start(
            job, out, phase=moment, occurrence=nth, command=disks.FAULTS[fault].format(**names)
        )
        assert_ended(code, errors, out, path)
        assert fault != "gone" or not out.exists()
        assert fault == "read-only" or not left(disk)
        subprocess.run(disks.CURES[fault].format(**names), shell=True, check=True)
        if job in MADE_BEFORE:
            out.mkdir(exist_ok=True)
        elif job not in RESUMED:
            shutil.rmtree(out, ignore_errors=True)
        code, errors = start(job, out, *(["--resume"] if job in RESUMED else []))
        assert code == 0, errors
        assert_equal(out, undisturbed)
        assert not left(disk)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", ["train", "sft", "evaluate", "export"])
def test_a_disk_of_any_size_holds_a_job_or_ends_it_with_one_line(started, tmp_path, job):
    start, whole = started
    undisturbed = whole(job)
    used = sum(p.stat().st_size + 4096 for p in undisturbed.rglob("*") if p.is_file())
    named = set()
    for part in range(12):
        size = 4096 + used * part // 10
        with disks.mounted(tmp_path / str(part), "-o", f"size={size}") as disk:
            out = disk / "out"
            if job in MADE_BEFORE:
                out.mkdir()
            code, errors = start(job, out)
            if code:
                assert_ended(code, errors, out, "")
                named.add(re.search(rf"{disk}[^ :']*", errors.splitlines()[-1])[0])
            assert not left(disk)
            subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
            code, errors = (
                start(job, out, *(["--resume"] if job in RESUMED else [])) if code else (0, "")
            )
            assert code == 0, errors
            assert_equal(out, undisturbed)
    print(job, used, sorted(named))
    assert len({re.sub(r"/\d+/out", "", name) for name in named}) >= (1 if job == "export" else 3)


@pytest.mark.slow
def test_output_that_goes_to_a_full_disk_ends_a_job_with_one_line(started, tmp_path):
    start, whole = started
    with disks.mounted(tmp_path / "disk", "-o", "size=4k") as disk:
        (disk / "filler").write_bytes(bytes(4096))
        code, errors = start("evaluate", tmp_path / "out", log=disk / "log")
        assert (
            code == 2 and "sdjax: error: the output: cannot be written" in errors.splitlines()[-1]
        )
    code, errors = start("evaluate", tmp_path / "out", "--resume")
    assert code == 0, errors
    assert_equal(tmp_path / "out", whole("evaluate"))


def test_what_is_printed_to_a_full_disk_is_said_on_stderr():
    command = [sys.executable, "-m", "sdjax.main", "--help"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("sdjax: error: the output: cannot be written (No space left")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("job", "fault", "moment", "nth", "path"), marks.heavy_but([SHORT[3]], SHORT)
)
def test_a_job_that_loses_its_disk_names_the_path(
    folder, tmp_path, capfd, job, fault, moment, nth, path
):
    run = report_runs.write(tmp_path / "run", steps=2)
    with disks.mounted(tmp_path / "disk", "-o", "size=1m") as disk:
        out = disk / "out"
        if job in MADE_BEFORE:
            out.mkdir()
        file = config_file(folder, job, out, run)
        names = {"disk": disk, "out": out}
        command = disks.FAULTS[fault].format(**names)
        with pytest.MonkeyPatch.context() as patch:
            taken = functools.partial(subprocess.run, command, shell=True, check=True)
            faults.at(moment, nth, taken, patch.setattr)
            code = main(["--config", str(file)])
        assert_ended(code, capfd.readouterr().err, out, path)
        assert not left(disk) and out.exists() == (fault != "gone")
        subprocess.run(disks.CURES[fault].format(**names), shell=True, check=True)
        assert main(["--config", str(file), *(["--resume"] if job in RESUMED else [])]) == 0
        assert not left(disk)
