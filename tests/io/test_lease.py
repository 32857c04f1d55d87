"""A run directory has one owner: a second process is refused, and a silent owner loses it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sdjax.errors import UserError
from sdjax.io import lease
from sdjax.io.storage import OWNER
from sdjax.logs.writers import Lines

HOLD = """
import sys, time
from pathlib import Path
from sdjax.io import lease
from sdjax.logs.writers import Lines
lease.BEAT_S, lease.STALE_S = 0.2, 1.0
out = Path(sys.argv[1])
lease.take(out)
lines = Lines(out / "metrics.jsonl", after=None)
print("held", flush=True)
for step in range(1000):
    time.sleep(0.05)
    try:
        lines.write([{"step": step}])
    except Exception as error:
        print(error, flush=True)
        break
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.1)
    yield
    lease.release_all()


@pytest.fixture
def owner(tmp_path):
    """Yields a process that holds a directory and writes lines there."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_name_of_the_owner(quick, owner, tmp_path):
    before = time.monotonic()
    with pytest.raises(UserError) as error:
        lease.take(tmp_path)
    assert f"process {owner.pid} on " in str(error.value) and "\n" not in str(error.value)
    assert "end it, or choose another out" in str(error.value) and time.monotonic() - before < 1


def test_a_dead_owner_is_replaced_at_once(quick, owner, tmp_path):
    owner.kill()
    owner.wait()
    before = time.monotonic()
    lease.take(tmp_path)
    assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
    assert time.monotonic() - before < 0.5
    lease.release(tmp_path)
    assert not (tmp_path / OWNER).exists()


@pytest.mark.heavy
def test_a_stopped_owner_is_replaced_and_writes_nothing_when_it_wakes(quick, owner, tmp_path):
    owner.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    lease.take(tmp_path)
    held = (tmp_path / "metrics.jsonl").read_bytes()
    lines = Lines(tmp_path / "metrics.jsonl", after=3)
    lines.write([{"step": 4}])
    ours = (tmp_path / "metrics.jsonl").read_bytes()
    owner.send_signal(signal.SIGCONT)
    said = owner.stdout.readline()
    assert f"process {os.getpid()} on " in said and "writes nothing more" in said
    assert (tmp_path / "metrics.jsonl").read_bytes() == ours != held
    lines.close()


@pytest.mark.heavy
def test_an_owner_that_works_for_long_keeps_the_directory(quick, tmp_path):
    lease.take(tmp_path)
    time.sleep(2.5)  # over STALE_S, while another thread writes the time
    lease.check()
    beat = json.loads((tmp_path / OWNER).read_text())["beat"]
    assert time.time() - beat < 1
    lease.take(tmp_path)  # a process may take what it has


def test_an_owner_on_another_host_is_watched_before_it_is_replaced(quick, tmp_path):
    there = {"host": "elsewhere", "process": os.getpid(), "since": "then", "token": "t", "beat": 0}
    (tmp_path / OWNER).write_text(json.dumps(there | {"machine": "m", "start": "1"}))
    before = time.monotonic()
    lease.take(tmp_path)
    assert time.monotonic() - before >= lease.STALE_S


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_file_that_is_no_lease_is_replaced(quick, tmp_path, text):
    (tmp_path / OWNER).write_text(text)
    lease.take(tmp_path)
    assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


@pytest.mark.heavy
def test_of_two_that_begin_at_once_one_is_the_owner(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom sdjax.io import lease\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try:\n    lease.take(Path(sys.argv[1]))\n    print('owner')\n    time.sleep(2)\n"
        "except Exception as error:\n    print('refused', error)\n"
    )
    start = str(time.time() + 2)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path), start]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in "ab"]
    assert sorted(p.communicate()[0].split()[0] for p in both) == ["owner", "refused"]


def test_a_folder_to_be_has_an_owner_beside_it(quick, tmp_path):
    with lease.holding(tmp_path / "model"):
        assert (tmp_path / f"model.{OWNER}").exists()
    assert not list(tmp_path.iterdir())


def test_an_owner_whose_directory_is_gone_is_told_before_it_writes(quick, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    lease.take(out)
    lease.check()
    shutil.rmtree(out)
    with pytest.raises(UserError, match=f"{out}: was removed while this process wrote there"):
        lease.check()
    lease.release(out)
    lease.check()


def test_a_folder_is_not_made_in_a_directory_that_is_gone(quick, tmp_path):
    out = tmp_path / "out"
    lease.make_folder(out / "answers")
    assert (out / "answers").is_dir()
    lease.take(out)
    shutil.rmtree(out)
    for write in (lambda: lease.make_folder(out / "answers"), lambda: Lines(out / "a", after=None)):
        with pytest.raises(UserError, match=f"{out}: was removed"):
            write()
    assert not out.exists()
    lease.release(out)
