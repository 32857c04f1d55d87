"""Run directories: local ones, and those in a bucket (gs://, s3://, az://).

Nothing can be appended to an object in a bucket. A run with such an `out` therefore writes its
files to a local directory. At each checkpoint and at its end it copies every file that changed.
Checkpoints go to the bucket directly (Orbax). An object appears there whole or not at all.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from sdjax.errors import UserError, writing
from sdjax.io import network

PART = 1 << 24  # bytes copied at a time
DIRECT = ("checkpoints",)
"""Folders that are written to their place directly."""
OWNER = "owner.json"
"""Names the process that writes a run directory; see sdjax/io/lease.py."""
NOT_READ_BACK = (*DIRECT, "model", "server")
"""Folders that a resumed run does not read."""
GOOGLE = "storage.googleapis.com"
REACH_S = 5
"""Longest wait in seconds for an answer of GOOGLE."""
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def is_remote(path: str) -> bool:
    """Returns whether a path names a bucket."""
    return "://" in path


def place(path: str, field_name: str = "out") -> Any:
    """Returns the path as an object with pathlib's methods.

    Raises UserError for an unknown scheme, or one whose library is not installed. `field_name` is
    the config field of the path.
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
    if scheme == "gs":
        _check_google(path, field_name)
    from etils import epath

    return epath.Path(path)


@cache
def _check_google(path: str, field_name: str) -> None:
    """Raises UserError if there are no credentials for a bucket, or no network.

    Otherwise the library tries again for a minute, and prints tracebacks.
    """
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    if os.environ.get("STORAGE_EMULATOR_HOST"):  # a local server, which asks for nothing
        return
    try:
        google.auth.default()
    except GoogleAuthError as error:
        raise UserError(
            f"{field_name} is {path!r}: no Google Cloud credentials ({str(error).split('. ')[0]}): "
            "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS "
            "to a key file"
        ) from None
    if getproxies().get("https"):
        return
    try:
        socket.create_connection((GOOGLE, 443), timeout=REACH_S).close()
    except OSError as error:
        raise UserError(
            f"{field_name} is {path!r}: {GOOGLE} cannot be reached ({network.why(error)}): "
            "look at the network, or name a local directory"
        ) from None


class Folder:
    """A run directory: files are written to `local`; `place` is what the config names."""

    def __init__(self, place: Any, local: Path) -> None:
        self.place, self.local = place, local
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of change, by name
        self._pushed = float("-inf")

    @property
    def remote(self) -> bool:
        """Whether `place` is in a bucket, so that the files have to be copied there."""
        return self.place != self.local

    def push(self, every_s: float = 0.0) -> None:
        """Copies the files that have changed since the last call to their place.

        It does nothing within `every_s` seconds after the last copy. If the place refuses the
        files, UserError says where they are.
        """
        if not self.remote or time.monotonic() - self._pushed < every_s:
            return
        for file in _files(self.local):
            name, stat = file.relative_to(self.local), file.stat()
            version = (stat.st_size, stat.st_mtime_ns)
            if self._copied.get(name) != version:
                _copy(file, self.place / name, f"; what the run made is in {self.local}")
                self._copied[name] = version
        self._pushed = time.monotonic()

    def pull(self) -> None:
        """Copies the files that the run left in its place to `local`, before it is resumed."""
        if self.remote:
            with reported(self.place):
                files = list(_files_of_place(self.place))
            for file in files:
                name = Path(*file.relative_to(self.place).parts)
                with writing(self.local / name):
                    (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(file, self.local / name)

    def holds(self, names: Iterable[str]) -> bool:
        """Returns whether its place has one of these files, and it is not empty."""
        return holds(self.place, names)

    def close(self) -> None:
        """Removes the local copy of a folder in a bucket."""
        if self.remote:
            shutil.rmtree(self.local, ignore_errors=True)


def holds(place: Any, names: Iterable[str]) -> bool:
    """Returns whether a directory has one of these files, and it is not empty."""
    with nullcontext() if isinstance(place, Path) else reported(place):
        files = [place / name for name in names]
        return any(f.exists() and _size(f) > 0 for f in files)


def folder(path: str) -> Folder:
    """Returns a run directory, without creating it."""
    at = place(path)
    if not is_remote(path):
        return Folder(place=at, local=at)
    with writing(os.environ.get("TMPDIR", "/tmp")):
        return Folder(place=at, local=Path(tempfile.mkdtemp(prefix="sdjax-")))


def copy_tree(source: Path, target: Any) -> None:
    """Copies the files of a local folder to another place; raises UserError if that fails."""
    for file in _files(source):
        _copy(file, target / file.relative_to(source))


def _size(file: Any) -> int:
    """Returns the size of a file in bytes."""
    stat = file.stat()
    return stat.st_size if isinstance(file, Path) else stat.length


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files of a local run directory that have to be copied to its place."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).parts[0] not in DIRECT:
            yield file


def _files_of_place(folder: Any) -> Iterator[Any]:
    """Yields the files that a resumed run reads."""
    if folder.exists():
        for entry in folder.iterdir():
            if not entry.is_dir():
                if entry.name != OWNER:
                    yield entry
            elif entry.name not in NOT_READ_BACK:
                yield from _files_of_place(entry)


def _copy(source: Any, target: Any, kept: str = "") -> None:
    """Copies a file; raises UserError, with `kept` at its end, if that fails."""
    with reported(target, kept), source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, PART)


@contextmanager
def reported(where: Any, kept: str = "") -> Iterator[None]:
    """Raises UserError in place of any error of a store's library.

    Those errors (no bucket, no right to write, no credentials, no network) have many classes.
    `kept` ends the message: it says where the files are.
    """
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{where}: cannot be reached or written ({network.why(error)}): look at its name "
            f"and at your rights there{kept}"
        ) from error
