"""Where a run's files are: a local directory, or one in a bucket (gs://, s3://, az://). No jax.

Objects in a bucket cannot be appended to. So a run with such an `out` writes its files to a local
directory, and copies those that changed, whole, at every checkpoint and at its end; checkpoints go
to the bucket directly (Orbax). An object appears there whole or not at all.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sdjax.errors import UserError

PART = 1 << 24  # bytes copied at a time
DIRECT = ("checkpoints",)
"""What is written to its place directly."""
NOT_READ_BACK = (*DIRECT, "model", "server")
"""What a run that is gone on with does not read."""
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def is_remote(path: str) -> bool:
    """Returns whether a path is in a bucket."""
    return "://" in path


def place(path: str, field_name: str = "out") -> Any:
    """Returns the path as an object with pathlib's methods.

    Raises UserError for a scheme that is not known, or whose library is not installed.
    """
    if not is_remote(path):
        return Path(path)
    scheme = path.partition("://")[0]
    if scheme not in LIBRARIES:
        known = ", ".join(f"{name}://" for name in LIBRARIES)
        raise UserError(f"{field_name} is {path!r}: must be a local path or begin with {known}")
    try:
        importlib.import_module(LIBRARIES[scheme])
    except ImportError:
        raise UserError(
            f"{field_name} is {path!r}: {scheme}:// needs {LIBRARIES[scheme]}: pip install "
            f"{LIBRARIES[scheme]}"
        ) from None
    from etils import epath

    return epath.Path(path)


class Folder:
    """A run directory: files are written to `local`; `place` is what the config names."""

    def __init__(self, place: Any, local: Path) -> None:
        self.place, self.local = place, local
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of change, by name
        self._pushed = float("-inf")

    @property
    def remote(self) -> bool:
        """Whether the files have to be copied to their place."""
        return self.place != self.local

    def push(self, every_s: float = 0.0) -> None:
        """Copies what has changed since the last time to its place, at most so often.

        Raises UserError, which says where the files are, if the place refuses them.
        """
        if not self.remote or time.monotonic() - self._pushed < every_s:
            return
        for file in _files(self.local):
            name, stat = file.relative_to(self.local), file.stat()
            now = (stat.st_size, stat.st_mtime_ns)
            if self._copied.get(name) != now:
                _copy(file, self.place / name, f"; what the run made is in {self.local}")
                self._copied[name] = now
        self._pushed = time.monotonic()

    def pull(self) -> None:
        """Copies what an earlier part of the run left in its place to `local`."""
        if self.remote:
            with _reported(self.place):
                found = list(_files_of_place(self.place))
            for file in found:
                name = Path(*file.relative_to(self.place).parts)
                (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(file, self.local / name)

    def holds(self, names: Iterable[str]) -> bool:
        """Returns whether its place has one of these files, with something in it."""
        with _reported(self.place) if self.remote else nullcontext():
            files = [self.place / name for name in names]
            return any(f.exists() and _size(f) > 0 for f in files)

    def close(self) -> None:
        """Removes the local copy of a folder elsewhere."""
        if self.remote:
            shutil.rmtree(self.local, ignore_errors=True)


def folder(path: str) -> Folder:
    """Returns a run directory; creates nothing in its place."""
    at = place(path)
    local = Path(tempfile.mkdtemp(prefix="sdjax-")) if is_remote(path) else at
    return Folder(place=at, local=local)


def copy_tree(source: Path, target: Any) -> None:
    """Copies a local folder's files to another place; raises UserError."""
    for file in _files(source):
        _copy(file, target / file.relative_to(source))


def _size(file: Any) -> int:
    stat = file.stat()
    return stat.st_size if isinstance(file, Path) else stat.length


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).parts[0] not in DIRECT:
            yield file


def _files_of_place(folder: Any) -> Iterator[Any]:
    if folder.exists():
        for entry in folder.iterdir():
            if not entry.is_dir():
                yield entry
            elif entry.name not in NOT_READ_BACK:
                yield from _files_of_place(entry)


def _copy(source: Any, target: Any, kept: str = "") -> None:
    with _reported(target, kept), source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, PART)


@contextmanager
def _reported(where: Any, kept: str = "") -> Iterator[None]:
    """Raises UserError in place of whatever a store's library does.

    Their errors (no such bucket, no right to write, no credentials, no network) are of many
    classes.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise UserError(
            f"{where}: cannot be reached or written ({reason}): look at its name and at your "
            f"rights there{kept}"
        ) from error
