"""A kill or a signal at any moment costs nothing but time."""

import random
import shutil
import signal
from collections import Counter

import faults
import pytest
import runs
import tiny

CONFIG = """
from pathlib import Path
import kinds
config = kinds.KINDS[{kind!r}](Path({model!r}))
"""
# How often a run enters each phase, and about how many seconds the phase lasts.
TIMES = {"rollout": 6, "update": 6, "evaluation": 4, "save": 3, "commit": 3, "export": 1}
LASTS = {
    "rollout": 0.05,
    "update": 0.03,
    "evaluation": 0.05,
    "save": 0.3,
    "commit": 0.03,
    "export": 0.05,
}
KINDS = ("ema", "grpo", "lora", "packed", "trust region", "finetuning")
# Two signals end a run at once, as a kill does.
SIGNALS = ([signal.SIGKILL], [signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM])
ENDS = {-9, 75, 128 + signal.SIGTERM}


@pytest.fixture(scope="module")
def whole(job_server, tmp_path_factory):
    """Returns a function that gives the config file of a kind, and an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("faults")
    model = tiny.model_folder(folder / "model", num_hidden_layers=1)
    made = {}

    def of(kind):
        if kind not in made:
            file, out = folder / f"{kind}.py", folder / kind
            file.write_text(CONFIG.format(kind=kind, model=str(model)))
            code = run(job_server, file, out)
            assert code == 0, out.with_suffix(".log").read_text()[-3000:]
            made[kind] = file, out
        return made[kind]

    return of


def run(job_server, file, out, *args, **kill):
    log = out.with_suffix(".log")
    return job_server.run("--config", str(file), "--out", str(out), *args, log=log, **kill)


def interrupted(job_server, file, out, seed, times):
    """Interrupts a run, and its resumed runs, `times` times in all; returns the moments."""
    rng = random.Random(seed)
    # A finetuning has neither rollouts nor updates of its own name.
    phases = [p for p in faults.PHASES if file.stem != "finetuning" or p not in faults.OF_TRAININGS]
    moments = []
    for number in range(times):
        phase = phases[seed % len(phases)] if number == 0 else rng.choice(phases)
        moment = {
            "phase": phase,
            "occurrence": rng.randint(1, TIMES[phase]) if number == 0 else 1,
            "delay": rng.uniform(0, LASTS[phase]),
            "signals": rng.choice(SIGNALS),
        }
        code = run(job_server, file, out, *(["--resume"] if number else []), **moment)
        # A resumed run may end without entering the phase, and a signal may come after the end.
        ended = code in ENDS or code in (0, *(-s for s in moment["signals"]))
        assert ended, (moments, moment, code, out.with_suffix(".log").read_text()[-3000:])
        moments.append(moment | {"code": code})
    return moments


def survives(job_server, whole, tmp_path, kind, seed, times=1):
    """Interrupts a run, resumes it and compares it with the undisturbed run."""
    file, undisturbed = whole(kind)
    out = tmp_path / f"run{seed}"
    moments = interrupted(job_server, file, out, seed, times)
    code = run(job_server, file, out, "--resume")
    assert code == 0, (kind, moments, out.with_suffix(".log").read_text()[-3000:])
    try:
        runs.assert_equal(undisturbed, out)
    except AssertionError as error:
        raise AssertionError(f"{kind}, seed {seed}: {moments}") from error
    left = [p.name for p in out.rglob("*") if ".part" in p.name or "tmp" in p.name]
    assert not left, (kind, moments, left)
    shutil.rmtree(out)
    return moments


@pytest.mark.heavy
# The seed picks the first phase: an update and a save; an evaluation and a save.
@pytest.mark.parametrize(("kind", "seed"), [("ema", 1), ("ema", 3), ("finetuning", 4)])
def test_a_run_interrupted_at_a_random_moment_ends_as_if_it_had_not_been(
    job_server, whole, tmp_path, kind, seed
):
    survives(job_server, whole, tmp_path, kind, seed, times=2)


TERM, KILL = [signal.SIGTERM], [signal.SIGKILL]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "moments",
    [
        # The evaluation of step 4 is interrupted and made up for; then a kill comes.
        [("evaluation", 3, TERM, 75), ("rollout", 1, KILL, -9)],
        [("evaluation", 4, TERM, 75)],  # of the last step
        [("evaluation", 4, TERM, 75), ("save", 1, KILL, -9)],
        [("export", 1, TERM, 75)],
    ],
    ids=["and a kill", "of the last step", "and a kill in its save", "export"],
)
@pytest.mark.parametrize("kind", ["grpo", "finetuning"])
def test_an_interrupted_evaluation_or_export_is_made_up_for(
    job_server, whole, tmp_path, kind, moments
):
    file, undisturbed = whole(kind)
    out = tmp_path / "out"
    for number, (phase, occurrence, signals, ends) in enumerate(moments):
        if kind == "finetuning" and phase == "rollout":
            phase, occurrence = "save", 1
        when = {"phase": phase, "occurrence": occurrence, "delay": 0.0, "signals": signals}
        code = run(job_server, file, out, *(["--resume"] if number else []), **when)
        assert code == ends, out.with_suffix(".log").read_text()[-3000:]
    assert run(job_server, file, out, "--resume") == 0
    runs.assert_equal(undisturbed, out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_runs_interrupted_at_random_moments_end_as_if_they_had_not_been(
    job_server, whole, tmp_path, kind
):
    numbers = [number for number in range(40) if KINDS[number % len(KINDS)] == kind]
    moments = []
    for number in numbers:
        moments += survives(job_server, whole, tmp_path, kind, 100 + number, times=3 + number % 2)
    sent = [m for m in moments if m["code"] != 0]
    by_phase, by_code = (dict(Counter(m[name] for m in sent)) for name in ("phase", "code"))
    print(f"{kind}: equal after {len(sent)} of {len(moments)}: {by_phase}, {by_code}")
    assert len(sent) >= 2 * len(numbers)
