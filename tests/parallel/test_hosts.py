"""Two processes of four devices each are one run of eight, and end together."""

import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
import several
import tiny

from sdjax.errors import UserError
from sdjax.parallel import launch

SECTIONS = """
from sdjax.config import *
from runs import Letters
sections = dict(
    task=Letters(held_out=6),
    model=Model(path="MODEL", compute_dtype="float32", remat="none"),
    mesh=Mesh(data=2, fsdp=2, tensor=2),
    eval=Eval(every=0, k=2, examples=6, batch=6, max_completion_tokens=8))
"""
TRAIN = """
config = Train(out="OUT", steps=2, **sections,
    rollout=Rollout(prompts_per_step=8, group_size=2, max_prompt_tokens=300,
                    max_completion_tokens=8, temperature=0.7),
    reprompt=Reprompt(max_tokens=400, success_threshold=-1.0),
    optim=Optim(microbatch=8, lr=1e-3, warmup_steps=0), teacher=Teacher(kind="ema"),
    checkpoint=Checkpoint(every=1), log=Log(progress=False, to=()))
"""
EVALUATE = """
config = Evaluate(out="OUT", max_prompt_tokens=300, **sections)
"""


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Returns a function that writes a config of a job, with its directory, and returns both."""
    folder = tmp_path_factory.mktemp("hosts")
    model = tiny.model_folder(folder / "model", num_hidden_layers=1)

    def written(name, job):
        text = (SECTIONS + job).replace("MODEL", str(model)).replace("OUT", str(folder / name))
        (folder / f"{name}.py").write_text(text)
        return folder / f"{name}.py", folder / name

    return written


@pytest.fixture(scope="module")
def runs(write):
    """Returns the directories of what one process of 8 devices and two of 4 made, by name."""
    places = {}

    def made(name, job):
        file, places[name] = write(name, job)
        return file

    two = [made("two", TRAIN), made("two_scored", EVALUATE)]
    ended = several.jobs(two)
    assert [e.code for e in ended] == [0, 0], ended[0].err[-3000:] + ended[1].err[-3000:]
    shutil.copytree(places["two"], write("restored", TRAIN)[1])
    shutil.rmtree(write("restored", TRAIN)[1] / "checkpoints" / "2")
    resumed, places["restored"] = write(
        "restored", TRAIN.replace("steps=2", "steps=2, resume=True")
    )
    (whole,) = several.jobs([made("one", TRAIN), resumed], processes=1, devices=8)
    assert whole.code == 0, whole.err[-3000:]
    places["said"] = ended
    return places


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same_run(one, two):
    rows = zip(lines(one / "rollouts.jsonl"), lines(two / "rollouts.jsonl"), strict=True)
    for a, b in rows:
        assert set(a) == set(b)
        for name in a:
            if name.endswith(("_logprobs", "_entropy")):  # rounded to four and to three digits
                np.testing.assert_allclose(b[name], a[name], atol=1.01e-3, err_msg=name)
            elif not name.endswith("_top"):
                assert a[name] == b[name], name
    ours, theirs = lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl")
    assert [m["step"] for m in theirs] == [m["step"] for m in ours] == [0, 1, 2]
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            if not name.startswith(("time/", "rollout/tokens_per_s")):
                # What differs by rounding alone, as sampler and trainer do, is near 1e-6.
                np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=2e-6, err_msg=name)
    from safetensors.numpy import load_file

    names = sorted(f.name for f in (one / "model").iterdir())
    assert names == sorted(f.name for f in (two / "model").iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            a, b = load_file(one / "model" / name), load_file(two / "model" / name)
            for tensor in a:
                # Exported as bfloat16: a rounding may fall to the other side.
                x, y = (np.asarray(t[tensor], np.float32) for t in (a, b))
                np.testing.assert_allclose(x, y, rtol=2**-7, atol=1e-6)


@pytest.mark.heavy
def test_two_processes_train_as_one_with_as_many_devices(runs):
    assert_same_run(runs["one"], runs["two"])


@pytest.mark.heavy
def test_a_checkpoint_of_two_processes_is_gone_on_from_by_one(runs):
    assert_same_run(runs["restored"], runs["two"])


@pytest.mark.heavy
def test_two_processes_evaluate_as_one(runs):
    # A training measures the model that it starts from, on the same noise.
    answers = (runs["one"] / "answers" / "000000.jsonl").read_bytes()
    assert answers.count(b"\n") == 12
    assert (runs["two_scored"] / "answers.jsonl").read_bytes() == answers
    scores = json.loads((runs["two_scored"] / "scores.json").read_text())
    first = json.loads((runs["one"] / "evaluations.json").read_text())[0]
    assert scores["accuracy"] == first["accuracy"] and scores["lengths"] == first["lengths"]


@pytest.mark.heavy
def test_only_the_first_process_speaks_and_no_part_of_a_file_is_left(runs):
    first, second = runs["said"]
    assert "step 2/2" in first.out and "held-out avg@2" in first.out
    # Gloo's threads write into each other's lines: "[Gloo] Rank 1 is connected to 3 peer ranks", of
    # which a number may stand alone.
    gloo = re.compile(r"\[Gloo\]|\bpeer ranks\b|^[\d ]+$")
    assert [line for line in second.out.splitlines() if line and not gloo.search(line)] == []
    assert not [f for f in runs["two"].rglob("*") if ".part" in f.name or "tmp" in f.name]


@pytest.mark.heavy
def test_one_killed_process_ends_the_other_within_a_minute_with_a_message(write):
    file, out = write("killed", TRAIN.replace("steps=2", "steps=1000"))
    run = several.Run(["--config", str(file)])
    until = time.monotonic() + 150
    while not (out / "metrics.jsonl").exists() or not lines(out / "metrics.jsonl"):
        assert time.monotonic() < until and run.processes[0].poll() is None
        time.sleep(0.2)
    run.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic() - run.start
    first, second = run.ended(timeout=killed + 90)
    assert second.code == -signal.SIGKILL
    assert first.code == 1 and first.seconds - killed < 60
    said = [line for line in first.err.splitlines() if line.startswith("sdjax: error: ")]
    assert len(said) == 1 and "process 1 of 2 has died" in said[0] and "--resume" in said[0]
    assert "Traceback" not in first.err


DATA = """
from sdjax.tasks.sciknoweval import SciKnowEval
sections |= dict(task=SciKnowEval(train="train.json", test="test.json", held_out=2))
"""


@pytest.mark.heavy
def test_one_process_s_data_error_ends_both_with_its_message(write, tmp_path):
    question = {
        "idx": 1,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": "A",
        "system": "Answer.",
    }
    rows = [question | {"idx": i, "prompt": f"{i}?\n\nA: one\nB: two"} for i in range(4)]
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
        for name in ("train", "test"):
            text = [json.dumps(row | {"prompt": name + row["prompt"]}) for row in rows]
            (place / f"{name}.json").write_text("\n".join(text))
    broken = (places[1] / "train.json").read_text().replace('"answer"', '"anwser"', 1)
    (places[1] / "train.json").write_text(broken)
    file, out = write("bad_data", DATA + TRAIN)
    first, second = several.run(["--config", str(file)], cwd=places)
    said = "train.json:1: field 'answer' is missing"
    assert (first.code, second.code) == (2, 2) and max(first.seconds, second.seconds) < 60
    assert f"sdjax: error: process 1 of 2: {said}" in first.err and said in second.err
    assert "Traceback" not in first.err + second.err and not out.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": "2", "process": "0"}, "--coordinator: missing"),
        ({"coordinator": "a:1", "process": "0"}, "--processes: missing"),
        ({"coordinator": "a:1"}, "--processes and --process: missing"),
        ({"coordinator": "a", "processes": "2", "process": "0"}, "must be HOST:PORT"),
        ({"coordinator": "a:b", "processes": "2", "process": "0"}, "must be HOST:PORT"),
        ({"coordinator": "a:1", "processes": "two", "process": "0"}, "--processes is 'two'"),
        ({"coordinator": "a:1", "processes": "2", "process": "2"}, "must be under --processes"),
        ({"coordinator": "a:1", "processes": "2", "process": "-1"}, "--process is '-1'"),
    ],
)
def test_a_wrong_flag_of_several_processes_is_named(given, words):
    with pytest.raises(UserError, match=words):
        launch.launch(given)


def test_one_process_alone_needs_no_flag_and_joins_nothing():
    assert launch.launch({}) == launch.Launch()
    assert launch.launch({"processes": "1"}) == launch.Launch(processes=1)
    with launch.together(launch.launch({}), {}):
        pass


def test_the_variables_of_jax_stand_for_the_flags(monkeypatch):
    for name, value in zip(launch.VARIABLES, ("10.0.0.1:99", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    expected = launch.Launch(coordinator="10.0.0.1:99", processes=4, process=3)
    assert launch.launch({}) == expected


@pytest.mark.parametrize(
    ("tasks", "gpus", "found"),
    [("1(x2)", "8", [*range(8)]), ("1", "4", [0, 1, 2, 3]), ("8(x2)", "8", None), ("", "8", None)],
)
def test_one_task_of_slurm_has_all_gpus_of_its_node(monkeypatch, tasks, gpus, found):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus)
    assert launch._gpus_of_the_node() == found


@pytest.mark.parametrize(
    ("variables", "joined"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a shell of salloc
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # any pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_launcher_is_told_from_a_machine_that_is_used_alone(monkeypatch, variables, joined):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch._launched_together() == joined
