"""Saves all that a run needs to go on exactly, while the run goes on.

A checkpoint is a folder named by its step: `state` and `host` as Orbax writes them, and
checksums.json with the size and SHA-256 of every file. The folder gets its name after all files
are written. A checkpoint is whole if its files are those of checksums.json.

A signal makes checkpoints that pass: they go once a later checkpoint is whole. One that it makes
during the evaluation of a step is unscored. Before the evaluated step saves another, the unscored
one is renamed to STEP.unscored, so that a whole one stands there at any time.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from sdjax import config
from sdjax.errors import UserError, WriteError, writing
from sdjax.io import lease
from sdjax.learner.state import TrainState, without_others
from sdjax.parallel import hosts

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
# A file of Orbax: when the save began and ended. It changes after the checksums are computed.
TIMES = "_CHECKPOINT_METADATA"
# The last file to be written where a folder cannot be renamed (object stores).
COMMITTED = "commit_success.txt"
UNSCORED = ".unscored"
BLOCK = 1 << 24


def saved_steps(folder: Any) -> list[int]:
    """Returns the steps of all checkpoints in a folder, oldest first. Some may be damaged."""
    return sorted({step for step, _ in _saved(folder)})


def _saved(folder: Any) -> list[tuple[int, Any]]:
    """Returns step and folder of all checkpoints, oldest first; a renamed one before its scored."""
    found = [(step, one) for step, one in _named(folder) if _is_finished(one)]
    return sorted(found, key=lambda each: (each[0], not each[1].name.endswith(UNSCORED)))


def _named(folder: Any) -> Iterator[tuple[int, Any]]:
    """Yields step and folder of all that have the name of a checkpoint."""
    for one in folder.iterdir() if folder.exists() else ():
        if match := re.fullmatch(rf"(\d+)({UNSCORED})?", one.name):
            yield int(match[1]), one


def _is_finished(folder: Any) -> bool:
    """Returns whether a save ended; without either file it did not."""
    return (folder / CHECKSUMS).exists() or (folder / COMMITTED).exists()


class Checkpoints:
    """The checkpoints of one run: `state` (arrays) and `host` (JSON: data position, history)."""

    def __init__(self, folder: Any, cfg: config.Checkpoint) -> None:
        # Orbax needs absolute paths; a path in a bucket is absolute.
        at = folder.absolute() if isinstance(folder, Path) else folder
        self._folder = epath.Path(at)
        self._cfg = cfg
        _hide_closed_loops()
        options = ocp.options.AsyncOptions(
            post_finalization_callback=self._seal,
            # Where a directory cannot be made, threads of Orbax would wait for it for 20 minutes,
            # and the process with them.
            create_directories_asynchronously=False,
        )
        parts = ocp.CompositeOptions(async_options=options)
        self._saver = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=parts), async_options=options
        )
        self._saving: tuple[epath.Path, dict[str, Any]] | None = None
        self._damaged: list[str] = []

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, oldest first. Some may be damaged."""
        return saved_steps(self._folder)

    def path(self, step: int) -> epath.Path:
        """Returns the folder of a step's checkpoint."""
        return dict(_saved(self._folder)).get(step, self._folder / str(step))

    def newest(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None where there is no checkpoint.

        A warning names the damage of each newer checkpoint. Raises UserError where none is whole.
        Every process must call it; the first process reads the files.
        """
        newest, wrong = None, {}
        for step, folder in reversed(_saved(self._folder) if jax.process_index() == 0 else []):
            if (why := damage(folder)) is None:
                newest = step
                break
            wrong[folder.name] = f"checkpoint {folder} is damaged: {why}"
        newest, wrong = hosts.of_first((newest, wrong))
        if newest is None and wrong:
            why = next(iter(wrong.values()))
            raise UserError(f"{why}; there is none before it that is whole: choose another out")
        for line in wrong.values() if jax.process_index() == 0 else []:
            log.warning("%s; going on from the one before", line)
        self._damaged = [*wrong]
        return newest

    def check(self, step: int) -> None:
        """Raises UserError where this checkpoint is damaged."""
        if (why := damage(self.path(step))) is not None:
            raise UserError(f"checkpoint {self.path(step)} is damaged: {why}; choose another step")

    def begin(self, *, resume: bool) -> int | None:
        """Returns the newest whole step, from which a run resumes; None: the run starts.

        Newer checkpoints are renamed to STEP.damaged, and half-written ones are removed. Raises
        UserError where there are checkpoints and `resume` is False.
        """
        if hosts.of_first(self.steps()) and not resume:
            raise UserError(
                f"{self._folder}: holds checkpoints; pass --resume or choose another --out"
            )
        newest = self.newest()
        self._set_damaged_aside()
        hosts.wait_for_first()
        return newest

    def _set_damaged_aside(self) -> None:
        if jax.process_index() != 0 or not self._folder.exists():
            return
        with writing(self._folder):
            _drop_unfinished(self._folder)
            for name in self._damaged:
                _rename(self._folder / name, f"{name}.damaged")

    def save(
        self,
        step: int,
        state: TrainState,
        host: dict[str, Any],
        score: float | None = None,
        *,
        passing: bool = False,
        unscored: bool = False,
    ) -> None:
        """Starts a save; the arrays of the state are copied before this returns.

        Parameters that never change are not saved: the run loads them from their model. A step
        that has a checkpoint is not saved a second time.

        Args:
            step: The steps that are done.
            state: The arrays.
            host: The JSON part.
            score: What cfg.keep_best compares.
            passing: Whether a signal made the checkpoint. It goes once a later one is whole.
            unscored: Whether the step's evaluation is still to come.

        Raises:
            UserError: This save or the save before it fails, or the run directory is gone.
        """
        self.wait()
        lease.check()  # because Orbax would bring back a directory that is gone
        path = self._folder / str(step)
        if hosts.of_first(jax.process_index() == 0 and _stays(path, unscored=unscored)):
            return
        state = replace(without_others(state), frozen=None)
        with self._writing(path):
            self._prune()
            flags = {"passing": passing, "unscored": unscored}
            self._saving = path, {"score": score} | {k: True for k, v in flags.items() if v}
            self._saver.save(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # type: ignore[call-arg]
                    host=ocp.args.JsonSave(host),  # type: ignore[call-arg]
                ),
                force=True,  # replaces a save that did not end
            )

    def _seal(self) -> None:
        """Writes the checksums into the folder just before it gets its name.

        Raises UserError if the run directory is gone: Orbax brought back the part it writes to.
        """
        lease.check()
        assert self._saving is not None
        path, facts = self._saving
        folder = self._saver.get_temporary_path(path).get()
        with ThreadPoolExecutor(8) as pool:
            names = [str(p.relative_to(folder)) for p in _files(folder)]
            files = dict(zip(names, pool.map(lambda n: _summed(folder / n), names), strict=True))
        files.pop(TIMES, None)
        text = json.dumps(facts | {"files": files}, indent=1)
        (folder / CHECKSUMS).write_text(text)

    def _prune(self) -> None:
        """Removes the checkpoints that cfg.keep and cfg.keep_best do not cover.

        Those of signals count for neither. What a killed process had begun to remove goes too.
        """
        if jax.process_index() != 0:
            return
        for folder in [one for _, one in _named(self._folder) if not _is_finished(one)]:
            folder.rmtree()
        saved = _saved(self._folder)
        facts = {folder: _facts(folder) for _, folder in saved}
        passing = {f for f in facts if facts[f].get("passing")}
        due = [(step, folder) for step, folder in saved if folder not in passing]
        newest = max((step for step, _ in due), default=-1)
        kept = {folder for _, folder in due[-self._cfg.keep :]}
        kept |= {folder for step, folder in saved if folder in passing and step > newest}
        # Of two checkpoints of a step only the scored one.
        kept -= {f.with_name(f.name + UNSCORED) for f in kept}
        if self._cfg.keep_best:
            sign = -1 if self._cfg.best_is == "lowest" else 1
            scored = [(facts[f].get("score"), step, f) for step, f in due]
            # Among equal scores the newest ranks highest.
            ranked = sorted((sign * s, step, f) for s, step, f in scored if s is not None)
            kept |= {folder for *_, folder in ranked[-self._cfg.keep_best :]}
        for folder in facts.keys() - kept:
            _remove(folder)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state, placed as `like` (abstract, with shardings), and the JSON part.

        The state has no parameters that never change. Raises UserError where the checkpoint does
        not fit.
        """
        like = replace(without_others(like), frozen=None)
        path = self.path(step)
        try:
            restored = self._saver.restore(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like),  # type: ignore[call-arg]
                    host=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, FileNotFoundError) as e:
            first = str(e).strip().splitlines()[0][:300]
            raise UserError(
                f"checkpoint {path} does not fit this config: {first}; "
                "resume with the model, teacher and optimizer it was made with"
            ) from e
        return restored["state"], restored["host"]

    def host(self, step: int) -> dict[str, Any]:
        """Returns the JSON part of a checkpoint."""
        only = ocp.args.Composite(host=ocp.args.JsonRestore())  # type: ignore[call-arg]
        return self._saver.restore(self.path(step), args=only)["host"]

    def params(self, step: int, like: nnx.State) -> nnx.State:
        """Returns the trained parameters only, placed as `like` (abstract, with shardings)."""
        restore = ocp.args.PyTreeRestore(  # type: ignore[call-arg]
            item={"params": like},
            restore_args={"params": ocp.checkpoint_utils.construct_restore_args(like)},
            partial_restore=True,
        )
        args = ocp.args.Composite(state=restore)
        return self._saver.restore(self.path(step), args=args)["state"]["params"]

    def wait(self) -> None:
        """Waits until the last save is on disk; raises UserError where it failed."""
        with self._writing(self._saving[0] if self._saving else self._folder):
            self._saver.wait_until_finished()

    def close(self) -> None:
        """Waits until the last save is on disk, and removes the checkpoints that are not kept."""
        self.wait()
        with self._writing(self._folder):
            self._prune()
            self._saver.close()

    @contextmanager
    def _writing(self, path: epath.Path) -> Iterator[None]:
        """Turns the exception of a failing save into a WriteError; nothing of the save remains."""
        try:
            with _reported(path):
                yield
        except UserError:
            if jax.process_index() == 0:
                _drop_all_unfinished(self._folder)
            raise


def _drop_unfinished(folder: epath.Path) -> bool:
    """Removes what saves that did not end have left; returns whether there was any."""
    there = folder.iterdir() if folder.exists() else ()
    left = [one for one in there if ".orbax-checkpoint-tmp" in one.name]
    for one in left:
        one.rmtree()
    return bool(left)


def _drop_all_unfinished(folder: epath.Path) -> None:
    """Removes what a save that has failed leaves, until nothing new comes for half a second.

    TensorStore still writes for a while after the error. What cannot be removed, as on a read-only
    disk, the next run removes. The folders above go too where they are empty: Orbax makes them
    anew if a run directory is removed while it writes.
    """
    quiet = 0
    for _ in range(20):
        try:
            quiet = 0 if _drop_unfinished(folder) else quiet + 1
        except Exception:
            quiet = 0
        if quiet == 5:
            break
        time.sleep(0.1)
    if "://" not in str(folder):
        with suppress(OSError):
            os.rmdir(folder)
            os.rmdir(folder.parent)


@functools.cache
def _hide_closed_loops() -> None:
    """Hides lines without a cause: of writes that end after the save that began them has failed.

    Orbax closes its event loop at the first error. Each write that TensorStore ends later finds it
    closed, and Python would print a traceback for each.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


@contextmanager
def _reported(path: epath.Path) -> Iterator[None]:
    """Turns the exception of a failing save into a WriteError that names the path."""
    try:
        with writing(path):
            yield
    except WriteError:
        lease.check()  # says that the directory is gone, if that is why
        raise
    except UserError:
        raise
    except Exception as error:
        lease.check()
        # TensorStore raises no class that identifies a failed write; libraries of buckets raise
        # many.
        text = str(error).strip()
        if found := re.search(r"os_error_code='(\d+)'", text):
            why = os.strerror(int(found[1]))
        elif "Error writing" in text or "://" in str(path):
            why = text.partition("\n")[0][:300] or type(error).__name__
        else:
            raise
        # Nobody finishes the coroutines of the save; at exit they could not report their cause.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise WriteError(f"{path}: cannot be written ({why})") from error


def _stays(folder: epath.Path, *, unscored: bool) -> bool:
    """Returns whether a step's checkpoint is not saved again.

    An unscored one is renamed, if the new one is scored.
    """
    if not _is_finished(folder):
        return False
    if unscored or not _facts(folder).get("unscored"):
        return True
    with writing(folder):
        _rename(folder, folder.name + UNSCORED)
    return False


def _rename(folder: epath.Path, name: str) -> None:
    """Gives a folder another name; a folder that has it is removed."""
    new = folder.with_name(name)
    if new.exists():
        _remove(new)
    folder.rename(new)


def _remove(folder: epath.Path) -> None:
    """Removes a checkpoint, so that a kill at any moment leaves a whole one or none.

    A folder with neither of the two files is unfinished. The checksums go last of the two, because
    a checkpoint without them but finished counts as a damaged one that is kept.
    """
    for name in (COMMITTED, CHECKSUMS):
        (folder / name).unlink(missing_ok=True)
    folder.rmtree()


def _facts(folder: epath.Path) -> dict[str, Any]:
    """Returns score and kind of a checkpoint; {} where its file of checksums is not readable."""
    try:
        read = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def damage(folder: epath.Path) -> str | None:
    """Returns the first damage of a checkpoint's files; None where it is whole."""
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text())["files"]
        if not all(re.fullmatch(r"[0-9a-f]{64}", d) for _, d in wanted.values()) or not wanted:
            raise ValueError
    except FileNotFoundError:
        return f"it has no {CHECKSUMS}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS} is not readable"

    def wrong(name: str) -> str | None:
        size, digest = wanted[name]
        try:
            is_size, is_digest = _summed(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if is_size != size:
            return f"{name} has {is_size} bytes in place of {size}"
        return None if is_digest == digest else f"{name} is not what was written"

    with ThreadPoolExecutor(8) as pool:
        return next((why for why in pool.map(wrong, wanted) if why), None)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields the files of a folder and of those below it."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _summed(path: epath.Path) -> tuple[int, str]:
    """Returns a file's size in bytes and the SHA-256 of its content, in hexadecimal."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def abstract(state: TrainState, shardings: TrainState) -> TrainState:
    """Returns the shapes, dtypes and shardings of a state, which `restore` needs.

    Models that only teach are left out.
    """
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        without_others(state),
        without_others(shardings),
    )
