"""Claims the run directory of a job and keeps its record."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from sdjax import config
from sdjax.errors import UserError, WriteError
from sdjax.io import lease, run_record, storage
from sdjax.io.files import PART
from sdjax.parallel import hosts

# The first result of each job. A directory with one of these holds a run.
RESULTS = (
    *("metrics.jsonl", "answers.jsonl", "lm_eval.json"),
    *("bench.json", "collected.jsonl", "coverage.json", "preflight.json"),
)


def claim(
    out: str,
    job: config.Job,
    *,
    resume: bool,
    after: int = 0,
    fingerprints: Mapping[str, str] = MappingProxyType({}),
) -> storage.Folder:
    """Returns the run directory of a job that writes to local directories only.

    Raises UserError as `claim_folder` does, and for a bucket.
    """
    if storage.is_remote(out):
        raise UserError(f"out is {out!r}: this job writes to a local directory only; name one")
    return claim_folder(out, job, resume=resume, after=after, fingerprints=fingerprints)


def claim_folder(
    out: str,
    job: config.Job,
    *,
    resume: bool,
    shared: bool = False,
    after: int = 0,
    fingerprints: Mapping[str, str] = MappingProxyType({}),
) -> storage.Folder:
    """Creates the run directory with the resolved config, and returns it.

    A directory without a first result holds no run.

    Args:
        out: The directory, or the address of a bucket.
        job: Its config.
        resume: Whether the directory may hold a run.
        shared: Whether each process writes or reads there, so that each must see what the first
            one wrote.
        after: How much of a run there goes on: steps or answers. If it is 0 the run begins, and its
            record is written. Otherwise `record` writes it when new work begins.
        fingerprints: Of data and model.

    Raises:
        UserError: The directory holds a run and `resume` is False, a fingerprint differs from that
            of the run, or the directory cannot be written.
    """
    folder = storage.folder(out)
    if jax.process_index() == 0:
        _claim(folder, job, resume, after, fingerprints)
    if jax.process_count() > 1:
        file = folder.local / "config.json"
        first = jax.process_index() == 0 and file.exists()
        text = hosts.of_first(file.read_text() if first else None)
        if shared and text is not None:
            _check_seen(folder.place / file.name, text)
    return folder


def _claim(
    folder: storage.Folder,
    job: config.Job,
    resume: bool,
    after: int,
    fingerprints: Mapping[str, str],
) -> None:
    """Creates the directory, and its record unless a run goes on there; raises UserError."""
    out, made = str(folder.place), not folder.local.exists()
    try:
        held = folder.holds(RESULTS)
        if held and not resume:
            raise _held(out, job)
        if held:
            run_record.check_fingerprints(folder.place, job, after, fingerprints)
        lease.check()  # of the sweep that this run is a part of
        folder.local.mkdir(parents=True, exist_ok=True)
        lease.take(folder.place)
        remove_parts(folder.local)
        if resume:
            folder.pull()
        if not held or not after:
            record(folder, job, 0, fingerprints)
    except WriteError as e:
        lease.release(folder.place)
        if made:
            shutil.rmtree(folder.local, ignore_errors=True)
        raise UserError(f"out is {out!r}: {e}") from e
    except OSError as e:
        lease.release(folder.place)
        raise _unwritable("out", out, e) from e


def _held(out: str, job: config.Job) -> UserError:
    """Returns the error of a new job whose directory holds a run."""
    resume_or = "pass --resume or " if hasattr(job, "resume") else "choose "
    return UserError(f"out is {out!r}: it holds a run; {resume_or}another --out")


def _unwritable(field: str, folder: str, error: OSError) -> UserError:
    """Returns the error of a config field whose directory cannot be written."""
    return UserError(
        f"{field} is {folder!r}: cannot be written ({error.strerror}); name another directory"
    )


def remove_parts(folder: Path) -> None:
    """Removes files that earlier owners of a run directory could neither finish nor remove."""
    for left in (*folder.glob("*.part"), *folder.glob("answers/*.part")):
        if PART.fullmatch(left.name):
            left.unlink()


def check_places(job: config.Job) -> None:
    """Raises UserError if a job may not write where it is told to; changes nothing there.

    Call it before anything is loaded. `claim_folder` asks again, because much can happen until
    then. It does nothing for a bucket, and on all processes but the first.
    """
    if jax.process_index() != 0:
        return
    profile, out = getattr(job, "profile", None), job.out  # type: ignore[union-attr]
    if profile is not None:
        if storage.is_remote(profile):
            raise UserError(f"profile is {profile!r}: must be a local directory")
        _try_to_write("profile", profile)
    if storage.is_remote(out):
        return
    if not getattr(job, "resume", False) and storage.holds(Path(out), RESULTS):
        raise _held(out, job)
    _try_to_write("out", out)


def _try_to_write(field: str, folder: str) -> None:
    """Raises UserError if neither a folder nor the one that it would be made in can be written."""
    path = Path(folder)
    try:
        while not path.exists():
            path = path.parent
        with tempfile.TemporaryDirectory(dir=path):
            pass
    except OSError as e:
        raise _unwritable(field, folder, e) from e


def check_same(cfg: config.Job, after: int) -> list[run_record.FieldChange]:
    """Returns the fields in which a resumed job differs from the run in its directory.

    Call it before anything is loaded. Raises UserError for fields that may not change, and where
    `check_places` does; `after` is as in `claim_folder`. Returns [] without `resume`, without a
    run, and on all processes but the first.
    """
    check_places(cfg)
    place = storage.place(cfg.out)  # type: ignore[union-attr]
    resume = getattr(cfg, "resume", False) and jax.process_index() == 0
    if not resume or not storage.holds(place, RESULTS):
        return []
    return run_record.check_config(place, cfg, after)


def record(
    folder: storage.Folder, job: config.Job, after: int, fingerprints: Mapping[str, str]
) -> None:
    """Writes the record of a run that begins, or that goes on from `after`.

    Call it after a resume has succeeded and when there is work to do. A failed resume, and one with
    nothing left to do, then leave the old record in place.
    """
    if jax.process_index() == 0:
        run_record.write(folder.local, job, after, fingerprints)
        folder.push()


def answers(out: str, *names: str) -> int:
    """Returns the number of answers in files of a run directory, which a resumed job reads."""
    if jax.process_index() != 0:
        return 0
    files = [file for name in names for file in sorted(storage.place(out).glob(name))]
    return sum(file.read_bytes().count(b"\n") for file in files)


@contextmanager
def pushed(folder: storage.Folder) -> Iterator[None]:
    """Copies the files of a run to their place at the end of the block, also if it fails.

    The run directory then has no owner any more.
    """
    primary = jax.process_index() == 0
    try:
        yield
    except BaseException as error:
        if primary and isinstance(error, OSError):
            lease.check()  # says that the directory is gone, if that is why
        with suppress(UserError):
            if primary:
                lease.check()
                folder.push()
        lease.release(folder.place)
        raise
    if primary:
        lease.check()
        folder.push()
    lease.release(folder.place)
    folder.close()


def _check_seen(file: Any, text: str, patience_s: float = 10.0) -> None:
    """Raises UserError if this process does not see what the first one wrote."""
    until = time.monotonic() + patience_s  # because a network file system may show it late
    while not (file.exists() and file.read_text() == text):
        if time.monotonic() > until:
            raise UserError(
                f"out is {str(file.parent)!r}: what process 0 writes there does not appear here; "
                "name a directory that all hosts share"
            )
        time.sleep(0.2)
