"""The scripts of tpu/ leave no slice behind, and resume a preempted run."""

import json
import os
import re
import shutil
import subprocess

import marks
import pytest
from paths import ROOT

from sdjax.main import main
from sdjax.plan import slices

SCRIPTS = sorted((ROOT / "tpu").glob("*.sh"))
WORKING = [p.name for p in SCRIPTS if p.name not in ("common.sh", "settings.sh")]


@pytest.fixture
def call(tmp_path):
    """Returns a function that runs a script and returns the process and its gcloud calls."""
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "tests" / "gcloud", tmp_path / "bin" / "gcloud")
    shutil.copytree(ROOT / "tpu", tmp_path / "repo" / "tpu")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "repo")
    shutil.copytree(ROOT / "configs" / "math", tmp_path / "repo" / "configs" / "math")
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)

    def run(name, *args, plan=None, state=None, **settings):
        (tmp_path / "plan.json").write_text(json.dumps(plan or {}))
        (tmp_path / "calls.jsonl").write_text("")
        if state:
            (tmp_path / "state").write_text(state)
        env = os.environ | {"FAKE": str(tmp_path), "POLL_S": "0", "TRIES": "3", "MODE": "spot"}
        env |= {"PROJECT": "mine", "BUCKET": "ours", "CLUSTER": "c", "IMAGE": "i"}
        env |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"} | settings
        script = tmp_path / "repo" / "tpu" / name
        shell = ["bash", "-c", 'RUN_PID=$$ exec "$0" "$@"', script, *args]
        done = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=60)
        calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
        done.calls, done.left = calls, (tmp_path / "state").exists()
        done.kinds = [c[0] for c in calls if c[0] != "describe"]
        return done

    return run


ONE = ["create", "scp", "setup", "launch", "look"]
END = ["delete", "rsync"]


def test_a_run_creates_trains_copies_and_deletes(call):
    done = call("run.sh", plan={"look": ["running\n0", "running\nrunning"]})
    assert done.returncode == 0 and not done.left, done.stderr
    assert done.kinds == [*ONE, "look", "look", *END]
    assert "--spot" in next(c for c in done.calls if c[0] == "create")
    launch = next(c[-1] for c in done.calls if c[0] == "launch")
    assert "--config configs/math/sdpo_qwen3_8b.py --out ~/bucket/sdpo_qwen3_8b --resume" in launch


TROUBLES = {
    "told to stop": {"look": ["running\nrunning", "75\nrunning"]},
    "preempted": {"describe": ["well", "well", "well", "PREEMPTED"]},
    "unreachable": {"look": ["unreachable"] * 5},
    "no setup": {"setup": ["unreachable"]},
    "no launch": {"launch": ["unreachable"]},
    "refused": {"create": ["refused"]},
    "half": {"create": ["half"]},
}


@pytest.mark.parametrize("trouble", marks.heavy_but(["preempted"], TROUBLES))
def test_a_run_goes_on_with_the_next_slice(call, trouble):
    done = call("run.sh", plan=TROUBLES[trouble])
    assert done.returncode == 0 and not done.left, done.stderr
    assert done.kinds.count("create") == 2 and done.kinds[-len(END) :] == END
    # The script deletes the first slice before it creates the second.
    between = done.kinds[done.kinds.index("create") : len(done.kinds) - len(ONE)]
    assert "delete" in between


def test_a_training_that_fails_is_not_started_again(call):
    done = call("run.sh", plan={"look": ["running\n2"]})
    assert done.returncode == 2 and not done.left
    assert done.kinds == [*ONE, "ssh", *END]


@pytest.mark.heavy
def test_a_run_gives_up_after_its_tries(call):
    done = call("run.sh", plan={"create": ["refused"] * 9})
    assert done.returncode == 1 and not done.left and "no slice of 3 lasted" in done.stderr
    assert done.kinds.count("create") == 3


@pytest.mark.heavy
def test_a_slice_that_cannot_be_deleted_is_shouted_about(call):
    done = call("run.sh", plan={"delete": ["refused"] * 9})
    assert done.returncode == 1 and done.left and "STILL BEING PAID FOR" in done.stderr


def test_not_knowing_is_not_taken_for_gone(call):
    done = call("delete.sh", state="READY", plan={"describe": ["refused"], "delete": ["refused"]})
    assert done.returncode == 0 and not done.left
    assert done.kinds == ["delete", "delete"]


@pytest.mark.parametrize("name", ["run.sh", "create.sh"])
def test_somebodys_slice_of_the_same_name_is_left_alone(call, name):
    done = call(name, state="READY")
    assert done.returncode == 2 and done.left and done.kinds == []
    assert "NAME is sdjax: it is in use (READY)" in done.stderr


@pytest.mark.parametrize("answer", marks.heavy_but(["FAILED"], ["FAILED", "SUSPENDED"]))
def test_a_queue_that_refuses_leaves_nothing(call, answer):
    plan = {"queued-resources-describe": ["WAITING_FOR_RESOURCES", answer]}
    done = call("create.sh", plan=plan, MODE="queued-spot")
    assert done.returncode == 1 and not done.left
    assert done.kinds[0] == "queued-resources-create" and "--spot" in done.calls[1]
    assert done.kinds[-1] == "queued-resources-delete"


@pytest.mark.heavy
def test_an_interrupted_run_leaves_no_slice(call):
    done = call("run.sh", plan={"look": ["interrupt"]})
    assert done.returncode == 130 and not done.left
    assert done.kinds == [*ONE, *END]


@pytest.mark.parametrize("mode", ["spot", "queued"])
@pytest.mark.parametrize("name", WORKING)
def test_a_dry_run_prints_every_command_and_calls_nothing(call, name, mode):
    done = call(name, "--dry-run", MODE=mode)
    assert done.returncode == 0 and done.calls == [], done.stderr
    assert done.stdout.startswith("+ ")
    if name == "run.sh":
        tool = "queued-resources" if mode == "queued" else "tpu-vm"
        for part in (f"{tool} create", "scp", "nohup", f"{tool} delete", "storage rsync"):
            assert part in done.stdout, part


@pytest.mark.parametrize("name", WORKING)
def test_a_placeholder_is_refused_and_in_a_dry_run_warned_of_once(call, name):
    done = call(name, PROJECT="my-project", BUCKET="my-bucket")
    assert done.returncode == 2 and done.calls == [], done.stderr
    assert done.stderr.startswith("tpu: PROJECT is 'my-project': set it in ")
    done = call(name, "--dry-run", PROJECT="my-project", BUCKET="my-bucket")
    assert done.returncode == 0 and done.stderr.count("PROJECT is 'my-project'") == 1


def test_the_bucket_and_the_config_are_looked_at_before_a_slice_is_paid_for(call):
    for given, said in (
        ({"BUCKET": "my-bucket"}, "BUCKET is 'my-bucket'"),
        ({"CONFIG": "configs/mine.py"}, "CONFIG is configs/mine.py: not in the last commit"),
        ({"SETTINGS": "nowhere.sh"}, "--settings is 'nowhere.sh': no such file"),
    ):
        done = call("run.sh", **given)
        assert done.returncode == 2 and done.calls == [] and said in done.stderr, done.stderr


def shipped(**settings):
    """Returns TYPE, RUNTIME, CONFIG and ARGS of settings.sh."""
    script = f'. {ROOT}/tpu/settings.sh; printf "%s\n" "$TYPE" "$RUNTIME" "$CONFIG" "$ARGS"'
    env = {"PATH": os.environ["PATH"]} | settings
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    return done.stdout.split("\n")[:4]


def test_the_settings_as_shipped_fit_their_own_slice(tmp_path):
    type_, _, file, args = shipped()
    generation, cores = type_.split("-")
    chip = slices.CHIPS[generation]
    chips = int(cores) // (1 if generation == "v6e" else 2)  # v4 and v5p count cores
    (piece,) = (p for p in slices.ladder(chip) if p.chips == chips)
    changes = [f"{n}={v}" for n, v in re.findall(r"--(\S+) (\S+)", args)]
    plan = ["--config", ROOT / "configs/plan.py", "--no_compile", "--out", tmp_path / "plan"]
    plan += ["--train", ROOT / file, "--topology", piece.name]
    plan += ["--change", *changes] if changes else []
    assert main([str(word) for word in plan]) == 0


@pytest.mark.parametrize(
    ("type_", "image"),
    [
        ("v6e-32", "v2-alpha-tpuv6e"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_the_image_is_that_of_the_slice(type_, image):
    assert shipped(TYPE=type_)[1] == image
    assert shipped(TYPE=type_, RUNTIME="own")[1] == "own"


def test_a_type_whose_image_is_not_known_is_refused_before_a_slice_is_created(call):
    for name in ("run.sh", "create.sh"):
        done = call(name, TYPE="tpu7x-8")
        assert done.returncode == 2 and done.calls == [], done.stderr
        assert "RUNTIME is ''" in done.stderr
    assert call("create.sh", TYPE="tpu7x-8", RUNTIME="own").returncode == 0


def test_a_wrong_argument_and_a_wrong_mode_are_named(call):
    assert "unknown argument --dry" in call("create.sh", "--dry").stderr
    done = call("create.sh", MODE="cheap")
    assert done.returncode == 2 and "MODE is cheap" in done.stderr and done.kinds == []


def test_the_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; .ci/run installs it")
    files = [*SCRIPTS, ROOT / "tpu" / "slurm_gpu.sbatch"]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", "SCRIPTDIR", *map(str, files)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
