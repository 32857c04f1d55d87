"""A wheel, installed outside the clone, starts a user from nothing."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

from sdjax.config import packaged

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Returns the wheel of this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Returns a function that runs a script of a new environment in an empty folder.

    The environment has the wheel, and takes its dependencies from the one that runs the tests.
    """
    venv = tmp_path_factory.mktemp("installed") / "venv"
    work = tmp_path_factory.mktemp("work")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    (packages,) = venv.glob("lib/python*/site-packages")
    # The folder is searched, but not its own .pth files, such as that of the clone.
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            [str(venv / "bin" / command[0]), *command[1:]],
            cwd=work,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.work = work
    return run


def test_a_wheel_has_the_configs_the_tiny_model_and_the_page_of_the_report(wheel):
    names = {*zipfile.ZipFile(wheel).namelist()}
    assert {f"sdjax/configs/{name}.py" for name in packaged.names()} <= names
    assert {"sdjax/configs/own/mine_reward.py", "sdjax/configs/own/mine.jsonl"} <= names
    assert {"sdjax/tiny/model.safetensors", "sdjax/analysis/report/web/page.html"} <= names
    tracked = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sdjax").rglob("*") if p.is_file()}
    assert {name for name in tracked if "__pycache__" not in name} <= names


def test_the_script_of_the_wheel_runs_outside_the_clone(installed):
    where = installed("python", "-c", "import sdjax; print(sdjax.__file__)").strip()
    assert not Path(where).is_relative_to(ROOT)
    assert installed("sdjax", "--help").startswith("usage: sdjax --config FILE")
    assert installed("sdjax", "--version") == installed("python", "-m", "sdjax", "--version")
    assert "package:quickstart" in installed("sdjax", "configs")


def test_the_files_of_init_train_outside_the_clone(installed):
    installed("sdjax", "init", "demo")
    small = ["--rollout.prompts_per_step", "2", "--rollout.group_size", "2", "--eval.examples", "2"]
    small += ["--rollout.max_completion_tokens", "48", "--eval.max_completion_tokens", "48"]
    installed("sdjax", "--config", "demo.py", "--steps", "1", *small)
    assert (installed.work / "runs" / "demo" / "model" / "model.safetensors").exists()


def test_a_config_of_the_package_starts_outside_the_clone(installed):
    traces = ["--config", "package:tiny/traces", "--rows", "20", "--out", "runs/traces"]
    installed("sdjax", *traces)
    assert any((installed.work / "runs" / "traces").iterdir())
