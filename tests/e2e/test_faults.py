"""SIGKILL at any moment costs nothing but time."""

import random
import shutil

import faults
import pytest
import runs
import tiny

CONFIG = """
from pathlib import Path
import runs
config = runs.job(Path({model!r}), Path("unset"), checkpoint={{"every": 2, "export": True}},
                  teacher={{"kind": "ema", "ema_rate": 0.3}}, eval={{"every": 2}})
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


@pytest.fixture(scope="module")
def server():
    server = faults.Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """Returns a config file and the directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    model = tiny.model_folder(folder / "model", num_hidden_layers=1)
    (folder / "config.py").write_text(CONFIG.format(model=str(model)))
    code = run(server, folder / "config.py", folder / "whole")
    assert code == 0, (folder / "whole.log").read_text()[-3000:]
    return folder / "config.py", folder / "whole"


def run(server, file, out, *args, **kill):
    log = out.with_suffix(".log")
    return server.run("--config", str(file), "--out", str(out), *args, log=log, **kill)


def killed(server, file, out, seed, times):
    """Kills a run, and its resumed runs, `times` times in all; returns the moments."""
    rng = random.Random(seed)
    phases = [*faults.PHASES]
    moments = []
    for number in range(times):
        phase = phases[seed % len(phases)] if number == 0 else rng.choice(phases)
        moment = {
            "phase": phase,
            "occurrence": rng.randint(1, TIMES[phase]) if number == 0 else 1,
            "delay": rng.uniform(0, LASTS[phase]),
        }
        code = run(server, file, out, *(["--resume"] if number else []), **moment)
        # A resumed run may end without entering the phase.
        assert code == -9 or (number and code == 0), out.with_suffix(".log").read_text()
        moments.append(moment | {"code": code})
    return moments


def survives(server, whole, tmp_path, seed, times=1):
    """Kills a run, resumes it and compares it with the undisturbed run."""
    file, undisturbed = whole
    out = tmp_path / f"run{seed}"
    moments = killed(server, file, out, seed, times)
    code = run(server, file, out, "--resume")
    assert code == 0, (moments, out.with_suffix(".log").read_text()[-3000:])
    runs.assert_equal(undisturbed, out)
    shutil.rmtree(out)
    return moments


@pytest.mark.heavy
# The seed picks the first phase: an update and a save.
@pytest.mark.parametrize("seed", [1, 3])
def test_a_run_killed_at_a_random_moment_ends_as_if_it_had_not_been(server, whole, tmp_path, seed):
    survives(server, whole, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_runs_killed_at_random_moments_all_end_as_if_they_had_not_been(
    server, whole, tmp_path
):
    moments = []
    for seed in range(100, 130):
        moments.append(survives(server, whole, tmp_path, seed, times=1 + seed % 2))
        print(seed, moments[-1], flush=True)
    kills = [m for of_run in moments for m in of_run if m["code"] == -9]
    by_phase = {phase: sum(m["phase"] == phase for m in kills) for phase in faults.PHASES}
    print(f"{len(moments)} of 30 equal after {len(kills)} kills: {by_phase}")
    assert all(by_phase.values())
