"""A kill or a signal at any moment costs nothing but time."""

import random
import shutil
import signal
from collections import Counter
from itertools import product

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
ENDINGS = ("export", "save", "export", "commit")
"""Phases that are still to come after the last step, in the order in which the runs take them."""
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


def interrupted(job_server, file, out, phases, rng):
    """Interrupts a run, and its resumed runs, once in each phase; returns the moments.

    The first signal comes in the first half of the run, so that it has the other phases to come.
    """
    moments = []
    for number, phase in enumerate(phases):
        moment = {
            "phase": phase,
            "occurrence": rng.randint(1, max(TIMES[phase] // 2, 1)) if number == 0 else 1,
            "delay": rng.uniform(0, LASTS[phase]),
            "signals": rng.choice(SIGNALS),
        }
        code = run(job_server, file, out, *(["--resume"] if number else []), **moment)
        # A resumed run may end without entering the phase, and a signal may come after the end.
        ended = code in ENDS or code in (0, *(-s for s in moment["signals"]))
        assert ended, (moments, moment, code, out.with_suffix(".log").read_text()[-3000:])
        moments.append(moment | {"code": code})
    return moments


def survives(job_server, whole, out, kind, phases, rng):
    """Interrupts a run, resumes it and compares it with the undisturbed run."""
    file, undisturbed = whole(kind)
    moments = interrupted(job_server, file, out, phases, rng)
    code = run(job_server, file, out, "--resume")
    assert code == 0, (kind, moments, out.with_suffix(".log").read_text()[-3000:])
    try:
        runs.assert_equal(undisturbed, out)
    except AssertionError as error:
        raise AssertionError(f"{kind}: {moments}") from error
    left = [p.name for p in out.rglob("*") if ".part" in p.name or "tmp" in p.name]
    assert not left, (kind, moments, left)
    shutil.rmtree(out)
    return moments


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "phases"),
    [
        ("ema", ("update", "save")),
        pytest.param("ema", ("evaluation", "commit"), marks=pytest.mark.slow),
        ("finetuning", ("save", "evaluation")),
    ],
)
def test_a_run_interrupted_at_a_random_moment_ends_as_if_it_had_not_been(
    job_server, whole, tmp_path, kind, phases
):
    survives(job_server, whole, tmp_path / "run", kind, phases, random.Random(kind))


TERM, KILL = [signal.SIGTERM], [signal.SIGKILL]


MOMENTS = {
    # The evaluation of step 4 is interrupted and made up for; then a kill comes.
    "and a kill": [("evaluation", 3, TERM, 75), ("rollout", 1, KILL, -9)],
    "of the last step": [("evaluation", 4, TERM, 75)],
    "and a kill in its save": [("evaluation", 4, TERM, 75), ("save", 1, KILL, -9)],
    "export": [("export", 1, TERM, 75)],
}
SHORT = [("grpo", "and a kill in its save"), ("grpo", "export"), ("finetuning", "of the last step")]


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        pytest.param(*case, marks=pytest.mark.heavy if case in SHORT else pytest.mark.slow)
        for case in product(("grpo", "finetuning"), MOMENTS)
    ],
)
def test_an_interrupted_evaluation_or_export_is_made_up_for(
    job_server, whole, tmp_path, kind, moments
):
    file, undisturbed = whole(kind)
    out = tmp_path / "out"
    for number, (phase, occurrence, signals, ends) in enumerate(MOMENTS[moments]):
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
    begins, goes_on = ("save", "commit", "evaluation"), ("evaluation",)
    if kind != "finetuning":  # which has neither rollouts nor updates of its own name
        begins, goes_on = (*faults.OF_TRAININGS, *begins), (*faults.OF_TRAININGS, *goes_on)
    rng, moments = random.Random(kind), []
    runs_of_kind = len(range(KINDS.index(kind), 40, len(KINDS)))
    for number in range(runs_of_kind):
        between = [rng.choice(goes_on) for _ in range(1 + number % 2)]
        phases = (begins[number % len(begins)], *between, ENDINGS[number % len(ENDINGS)])
        out = tmp_path / f"run{number}"
        moments += survives(job_server, whole, out, kind, phases, rng)
    # A signal that comes after the end of a run is none.
    sent = [m for m in moments if m["code"] != 0]
    by_phase, by_code = (dict(Counter(m[name] for m in sent)) for name in ("phase", "code"))
    print(f"{kind}: {runs_of_kind} runs equal after {len(sent)} signals: {by_phase}, {by_code}")
    assert len(sent) >= 3 * runs_of_kind, [m for m in moments if m["code"] == 0]
