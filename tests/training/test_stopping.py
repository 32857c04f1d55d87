"""A first signal saves and stops a run; a second one ends it at once."""

import os
import signal
import subprocess
import sys
import time

import pytest
import runs
import several

from sdjax.errors import RESUME
from sdjax.jobs import train_job
from sdjax.main import main
from sdjax.training import evaluation, host_step

pytestmark = pytest.mark.usefixtures("compiled_once")

CONFIG = """
from pathlib import Path
import runs
config = runs.job(Path({model!r}), Path({out!r}), checkpoint={{"every": {every}}})
"""


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Returns the directory of an undisturbed run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    train_job.run(runs.job(model, out))
    return out


@pytest.fixture
def start(model, tmp_path, monkeypatch):
    """Returns a function that runs a config through main and returns exit code and directory."""

    def run(*args, every=3):
        out = tmp_path / "out"
        text = CONFIG.format(model=str(model), out=str(out), every=every)
        (tmp_path / "config.py").write_text(text)
        return main(["--config", str(tmp_path / "config.py"), *args]), out

    return run


def send_in(patch, owner, name, call, number=signal.SIGTERM):
    """Sends this process a signal at call number `call` of a function."""
    function, calls = getattr(owner, name), []

    def called(*args):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            time.sleep(0.1)  # until the listening thread has read it
        return function(*args)

    patch.setattr(owner, name, called)


@pytest.mark.parametrize(
    ("owner", "name", "call", "saved", "number"),
    [
        # A rollout is lost, so the checkpoint is that of the step before.
        pytest.param(host_step, "sample_groups", 2, [1], signal.SIGTERM, marks=pytest.mark.heavy),
        (host_step, "take_updates", 5, [3, 5], signal.SIGINT),
        # An evaluation is repeated, but its step is not, and its line is written once.
        pytest.param(
            *(evaluation.EvaluationHistory, "measure", 3, [3, 4], signal.SIGTERM),
            marks=pytest.mark.heavy,
        ),
    ],
    ids=["rollout", "update", "evaluation"],
)
def test_a_signal_saves_and_the_run_that_goes_on_ends_the_same(
    start, whole, capfd, owner, name, call, saved, number
):
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, owner, name, call, number)
        code, out = start()
    assert code == RESUME == 75
    said = capfd.readouterr().err
    assert f"sdjax: {number.name}: saving, then stopping" in said
    command = f"python -m sdjax.main --config {out.parent / 'config.py'} --resume"
    assert (
        f"stopped: the checkpoint of step {saved[-1]} is written; go on with: {command}\n" in said
    )
    steps = sorted(int(p.name) for p in (out / "checkpoints").iterdir())
    assert steps == saved
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    code, out = start("--resume")
    assert code == 0
    runs.assert_equal(whole, out)


@pytest.mark.heavy
def test_a_signal_before_the_first_update_leaves_nothing_to_go_on_from(start, whole, capfd):
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, evaluation.EvaluationHistory, "measure", 1)
        code, out = start()
    assert code == RESUME and not (out / "checkpoints").exists()
    assert "before the end of the first step; start again with: python" in capfd.readouterr().err
    code, out = start("--resume")
    assert code == 0
    runs.assert_equal(whole, out)


def test_without_checkpoints_an_interrupt_interrupts(start):
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, host_step, "sample_groups", 1, signal.SIGINT)
        code, out = start(every=0)
    assert code == 130 and not (out / "checkpoints").exists()


SECOND = """
import hashlib, os, signal, sys, threading, time
from sdjax.training.stopping import Stop

def send():
    for _ in range(2):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

with Stop().listening(True):
    threading.Thread(target=send, daemon=True).start()
    # The main thread runs no Python meanwhile, as when it waits for devices.
    hashlib.pbkdf2_hmac("sha512", b"", b"", 200_000_000)
print("came back")
"""


@pytest.mark.heavy
def test_a_second_signal_ends_the_process_at_once_even_while_it_waits_for_devices():
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SECOND],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 128 + signal.SIGTERM and done.stdout == ""
    assert done.stderr.count("a second signal stops at once") == 1
    assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.parametrize(("process", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    model, tmp_path, process, number
):
    out = tmp_path / "out"
    # More steps than both processes finish before the signal.
    text = CONFIG.format(model=str(model), out=str(out), every=100)
    text += "from dataclasses import replace\nconfig = replace(config, steps=60)\n"
    (tmp_path / "config.py").write_text(text)
    started = several.Run(["--config", str(tmp_path / "config.py")], devices=2)
    while not (out / "metrics.jsonl").exists() or len(runs.lines(out / "metrics.jsonl")) < 4:
        assert all(p.poll() is None for p in started.processes)
        time.sleep(0.05)
    started.processes[process].send_signal(number)
    ended = started.ended()
    assert [e.code for e in ended] == [RESUME, RESUME], [e.err[-2000:] for e in ended]
    [step] = [int(p.name) for p in (out / "checkpoints").iterdir()]
    said = f"stopped: the checkpoint of step {step} is written"
    assert all(said in e.err for e in ended) and 3 <= step < 60
    # If its evaluation was interrupted, the line of the last step is not written yet.
    assert runs.lines(out / "metrics.jsonl")[-1]["step"] in (step - 1, step)
