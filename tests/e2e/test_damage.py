"""Damaged checkpoints, full disks and read-only folders: the run says so and loses nothing."""

import contextlib
import logging
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import runs
from disks import mounted

from sdjax import config
from sdjax.errors import UserError, WriteError
from sdjax.jobs import export_job, train_job
from sdjax.learner.checkpoint import CHECKSUMS, COMMITTED, TIMES, Checkpoints

pytestmark = pytest.mark.usefixtures("compiled_once")

# What says when and that a checkpoint was saved; nothing is read from it.
HARMLESS = {TIMES, COMMITTED}


def job(model, out, **changes):
    """Returns a run of two steps with a checkpoint after each."""
    return runs.job(
        model, out, **{"steps": 2, "checkpoint": {"every": 1}, "eval": {"every": 0}} | changes
    )


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    train_job.run(job(model, out))
    return out


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {"truncated": truncate, "zeroed": zero, "removed": os.unlink}


@pytest.mark.heavy
@pytest.mark.parametrize("how", DAMAGES)
def test_any_damaged_file_of_the_newest_checkpoint_makes_the_one_before_it_be_used(
    finished, tmp_path, caplog, how
):
    copy = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", copy)
    saved = Checkpoints(copy, config.Checkpoint())
    whole = runs.arrays(copy / "2")
    names = files(copy / "2")
    assert {CHECKSUMS, *HARMLESS} < set(names) and len(names) >= 10
    caplog.set_level(logging.WARNING)
    for name in names:
        content = (copy / "2" / name).read_bytes()
        DAMAGES[how](copy / "2" / name)
        caplog.clear()
        if name in HARMLESS:
            assert saved.newest() == 2
            for key, array in runs.arrays(copy / "2").items():
                np.testing.assert_array_equal(array, whole[key])
        else:
            assert saved.newest() == 1, name
            [said] = caplog.messages
            assert f"checkpoint {copy / '2'} is damaged: " in said
            assert name in said and "\n" not in said
        (copy / "2" / name).write_bytes(content)
    assert saved.newest() == 2


@pytest.mark.heavy
def test_a_run_goes_on_from_the_one_before_and_saves_the_damaged_one_again(
    model, finished, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    zero(out / "checkpoints" / "2" / "state" / "_METADATA")
    train_job.run(job(model, out, resume=True))
    runs.assert_equal(finished, out, step=2)
    saved = Checkpoints(out / "checkpoints", config.Checkpoint())
    assert saved.newest() == 2 and (out / "checkpoints" / "2.damaged").exists()


@pytest.mark.heavy
def test_where_no_checkpoint_is_whole_the_run_ends_with_one_line(model, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = (out / "metrics.jsonl").read_bytes()
    for step in ("1", "2"):
        truncate(out / "checkpoints" / step / "host" / "metadata")
    with pytest.raises(UserError, match=r"2 is damaged: host/metadata has .* none .* is whole"):
        train_job.run(job(model, out, resume=True))
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.heavy
def test_a_damaged_checkpoint_is_not_exported(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "checkpoints" / "1" / CHECKSUMS).unlink()
    with pytest.raises(UserError, match=f"1 is damaged: it has no {CHECKSUMS}"):
        export_job.run(config.Export(run=str(out), out=str(tmp_path / "model"), step=1))
    assert not (tmp_path / "model").exists()


@pytest.mark.heavy
def test_half_written_checkpoints_are_removed_and_none_of_them_is_used(finished, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", copy)
    shutil.move(copy / "2", copy / "2.orbax-checkpoint-tmp")
    (copy / "3").mkdir()  # on an object store, where nothing is renamed
    shutil.copytree(copy / "1" / "state", copy / "3" / "state")
    saved = Checkpoints(copy, config.Checkpoint())
    assert saved.steps() == [1] and saved.begin(resume=True) == 1
    assert not (copy / "2.orbax-checkpoint-tmp").exists()


@pytest.mark.heavy
def test_the_best_checkpoints_are_kept_beside_the_newest(model, tmp_path):
    best = {"every": 1, "keep": 1, "keep_best": 1, "best_metric": "eval/length"}
    for name, best_is in (("longest", "highest"), ("shortest", "lowest")):
        checkpoint = best | {"best_is": best_is}
        out = tmp_path / name
        evaluation = {"every": 1, "temperature": 1.0}
        train_job.run(job(model, out, steps=4, checkpoint=checkpoint, eval=evaluation))
        of_step = {m["step"]: m["eval/length"] for m in runs.lines(out / "metrics.jsonl")}
        del of_step[0]
        pick = max if best_is == "highest" else min
        wanted = max(s for s, v in of_step.items() if v == pick(of_step.values()))
        saved = Checkpoints(out / "checkpoints", config.Checkpoint())
        assert saved.steps() == sorted({wanted, 4})


@pytest.mark.heavy
def test_a_metric_that_no_evaluation_has_is_named_before_weights_are_loaded(model, tmp_path):
    checkpoint = {"every": 1, "keep_best": 1, "best_metric": "eval/acc"}
    cfg = job(model, tmp_path / "out", checkpoint=checkpoint, eval={"every": 1})
    with pytest.raises(UserError, match=r"best_metric is 'eval/acc': must be one of .*eval/avg@2"):
        train_job.run(cfg)
    assert not (tmp_path / "out").exists()


@contextlib.contextmanager
def files_of_at_most(size):
    """Makes the system refuse to grow a file beyond so many bytes (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_nothing_looks_whole_that_is_not(out, steps):
    folder = out / "checkpoints"
    saved = Checkpoints(folder, config.Checkpoint())
    assert saved.steps() == steps and saved.newest() == (steps[-1] if steps else None)


@pytest.mark.heavy
def test_a_refused_write_ends_the_run_with_the_path_and_nothing_that_looks_whole(model, tmp_path):
    out = tmp_path / "out"
    with files_of_at_most(30_000), pytest.raises(WriteError) as caught:
        train_job.run(job(model, out))
    said = str(caught.value)
    assert str(out / "checkpoints" / "1") in said and "File too large" in said
    assert "no checkpoint yet" in said and "\n" not in said
    assert_nothing_looks_whole_that_is_not(out, [])


@pytest.mark.heavy
def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    model, finished, tmp_path
):
    size = sum(
        (finished / "checkpoints" / "1" / f).stat().st_size
        for f in files(finished / "checkpoints" / "1")
    )
    with mounted(tmp_path / "disk", "-o", f"size={size * 3 // 2 + 150_000}") as disk:
        out = disk / "out"
        with pytest.raises(WriteError) as caught:
            train_job.run(job(model, out))
        said = str(caught.value)
        assert "No space left on device" in said and str(out) in said
        assert "the checkpoint of step 1 is whole" in said and "\n" not in said
        assert_nothing_looks_whole_that_is_not(out, [1])
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        train_job.run(job(model, out, resume=True))
        runs.assert_equal(finished, out, step=2)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
def test_a_log_that_cannot_grow_ends_the_run_with_its_path(model, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to("/dev/full")
    with pytest.raises(WriteError, match=rf"{out / name}: cannot be written \(No space left"):
        train_job.run(job(model, out))


def test_a_directory_that_is_read_only_is_named_before_weights_are_loaded(model, tmp_path):
    with (
        mounted(tmp_path / "disk", "-o", "ro") as disk,
        pytest.raises(
            UserError,
            match=rf"out is '{disk / 'out'}': cannot be written \(Read-only file system\)",
        ),
    ):
        train_job.run(job(model, disk / "out"))


@pytest.mark.parametrize("path", ["/dev/full", "a file"])
def test_what_is_no_directory_is_named(model, tmp_path, path):
    if path == "a file":
        path = str(tmp_path / "file")
        Path(path).write_text("something")
    for out in (path, f"{path}/out"):
        with pytest.raises(UserError, match=rf"out is '{out}': cannot be written"):
            train_job.run(job(model, out))
