"""Claims the run directory of a job and writes the resolved config into it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.errors import UserError, WriteError
from sdjax.io import storage
from sdjax.io.files import write_text
from sdjax.parallel import hosts

# The first result of each job. A directory with one of these holds a run.
RESULTS = ("metrics.jsonl", "answers.jsonl", "bench.json", "collected.jsonl", "coverage.json")


def claim(out: str, job: config.Job, *, resume: bool) -> Path:
    """Returns the run directory of a job that writes to local directories only.

    Raises UserError as `claim_folder` does, and for a bucket.
    """
    if storage.is_remote(out):
        raise UserError(f"out is {out!r}: this job writes to a local directory only; name one")
    return claim_folder(out, job, resume=resume).local


def claim_folder(
    out: str, job: config.Job, *, resume: bool, shared: bool = False
) -> storage.Folder:
    """Creates the run directory with the resolved config, and returns it.

    Raises UserError for a directory that holds a run, unless `resume`. One without a first result
    holds none. A resumed run keeps its config until `rewrite_config`. With `shared`, each process
    writes or reads there, so each must see what the first one wrote.
    """
    folder = storage.folder(out)
    if jax.process_index() == 0:
        _check_profile(getattr(job, "profile", None))
        _claim(folder, job, resume=resume)
    if jax.process_count() > 1:
        file = folder.local / "config.json"
        first = jax.process_index() == 0 and file.exists()
        text = hosts.of_first(file.read_text() if first else None)
        if shared and text is not None:
            _check_seen(folder.place / file.name, text)
    return folder


def _claim(folder: storage.Folder, job: config.Job, *, resume: bool) -> None:
    """Creates the directory, and its config unless it holds a run; raises UserError."""
    out = str(folder.place)
    try:
        held = folder.holds(RESULTS)
        if held and not resume:
            resume_or = "pass --resume or " if hasattr(job, "resume") else "choose "
            raise UserError(f"out is {out!r}: it holds a run; {resume_or}another --out")
        folder.local.mkdir(parents=True, exist_ok=True)
        if resume:
            folder.pull()
        if not held:
            rewrite_config(folder, job)
    except WriteError as e:
        raise UserError(f"out is {out!r}: {e}; name another directory") from e
    except OSError as e:
        raise UserError(
            f"out is {out!r}: cannot be written ({e.strerror}); name another directory"
        ) from e


def rewrite_config(folder: storage.Folder, job: config.Job) -> None:
    """Writes the resolved config.

    Call it after a resume has succeeded, so that a failed resume leaves the old config in place.
    """
    if jax.process_index() == 0:
        text = json.dumps(config.to_public(job), indent=2) + "\n"
        write_text(folder.local / "config.json", text)
        folder.push()


@contextmanager
def pushed(folder: storage.Folder) -> Iterator[None]:
    """Copies the files of a run to their place at the end of the block, also if it fails."""
    primary = jax.process_index() == 0
    try:
        yield
    except BaseException:
        with suppress(UserError):
            if primary:
                folder.push()
        raise
    if primary:
        folder.push()
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


def check_same(cfg: config.Job) -> None:
    """Raises UserError if the job's directory was made with another config."""
    out = cfg.out  # type: ignore[union-attr]
    file = storage.place(out) / "config.json"
    if not file.exists():
        return
    try:
        before = config.flat(json.loads(file.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not JSON ({error}); choose another --out") from None
    given = config.flat(config.to_public(cfg))
    for name in {**before, **given}:
        # Ignore the settings of a server other than its url: retries and timeouts change no answer.
        # Ignore the lexicon: it only counts words in answers that exist.
        if name in ("out", "resume", "profile", "lexicon") or (
            name.startswith("server.") and name != "server.url"
        ):
            continue
        if before.get(name) != given.get(name):
            raise UserError(
                f"{name} is {given.get(name)!r}: {out} was made with "
                f"{before.get(name)!r}; set it back or choose another --out"
            )


def _check_profile(folder: str | None) -> None:
    """Raises UserError if `folder` cannot be written.

    The job checks it first, because it writes the trace only after the work.
    """
    if folder is None:
        return
    if storage.is_remote(folder):
        raise UserError(f"profile is {folder!r}: must be a local directory")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise UserError(
            f"profile is {folder!r}: cannot be written ({e.strerror}); name another directory"
        ) from e
