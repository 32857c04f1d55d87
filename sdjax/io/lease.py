"""One owner per run directory: owner.json there names the process that writes.

The owner writes the time into the file every BEAT_S seconds. Another process takes the directory
over from an owner that is dead, or that has not written for STALE_S seconds because its host hangs.
An owner that wakes up later finds the file of another process and must not write.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax.errors import UserError, writing
from sdjax.io.storage import OWNER, reported

BEAT_S = 10.0
STALE_S = 30.0
LOOK_S = 0.5


@dataclass(kw_only=True)
class Lease:
    """A directory, or a file to be, that this process writes."""

    where: str
    file: Any  # pathlib.Path, or a path in a bucket
    owner: dict[str, Any]
    confirmed: float
    """When this process last saw itself in the file, in seconds of time.time."""
    taken_by: dict[str, Any] | None = None


_leases: dict[str, Lease] = {}
_changing = threading.Lock()


def take(place: Any, name: str = OWNER) -> None:
    """Makes this process the owner of a directory; raises UserError while another one is.

    `place` is a local path or one in a bucket. `name` is that of the file.
    """
    file, where = place / name, str(place)
    me = _myself()
    for _ in range(5):
        held = _read(file)
        if held is not None and not _is_ours(held) and not _is_gone(file, held):
            raise UserError(
                f"out is {where!r}: {_described(held)} writes there: end it, or choose another out"
            )
        with writing(file):
            if _write(file, me, instead_of=held):
                break
    else:
        raise UserError(f"out is {where!r}: other processes begin there too: choose another out")
    with _changing:
        _leases[where] = Lease(where=where, file=file, owner=me, confirmed=time.time())
    _start_beating()


def release(place: Any) -> None:
    """Ends the ownership of a directory, if this process has it."""
    with _changing:
        lease = _leases.pop(str(place), None)
        if lease is not None:
            # The directory may be gone, or in a bucket that cannot be reached.
            with contextlib.suppress(Exception):
                if (_read(lease.file) or {}).get("token") == lease.owner["token"]:
                    lease.file.unlink()


def release_all() -> None:
    """Ends every ownership of this process."""
    for where in list(_leases):
        release(where)


def check() -> None:
    """Raises UserError if a directory of this process has another owner, or is gone.

    Call it before writing. It reads a file only if this process did not run for a while.
    """
    for lease in list(_leases.values()):
        if isinstance(lease.file, Path) and not os.path.lexists(lease.file):
            raise UserError(
                f"{lease.where}: was removed while this process wrote there: choose another "
                "directory, which stays"
            )
        if lease.taken_by is None and time.time() - lease.confirmed > STALE_S - BEAT_S:
            _beat(lease)
        if lease.taken_by is not None:
            raise UserError(
                f"{lease.where}: {_described(lease.taken_by)} took it over, because this process "
                f"did not answer for {STALE_S:g} s; it writes nothing more"
            )


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it.

    A run directory that is gone does not come back: raises UserError as `check` does, and
    WriteError if the folder cannot be made.
    """
    check()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def holding(file: Path) -> Iterator[None]:
    """Makes this process the owner of a file or folder to be, within the block."""
    place = file.parent
    make_folder(place)
    take(place, f"{file.name}.{OWNER}")
    try:
        yield
    finally:
        release(place)


def _myself() -> dict[str, Any]:
    now = time.time()
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)),
        "token": uuid.uuid4().hex,
        "beat": now,
        "machine": _machine(),
        "start": _start_of(os.getpid()),
    }


def _machine() -> str:
    """Returns a name that only this boot of this machine, and this container, has."""
    parts = []
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts) or f"{uuid.getnode():x}"


def _start_of(process: int) -> str | None:
    """Returns when a process of this machine began, or None where there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _is_ours(held: dict[str, Any]) -> bool:
    here = held.get("machine") == _machine() and held.get("process") == os.getpid()
    return here and held.get("start") == _start_of(os.getpid())


def _is_gone(file: Any, held: dict[str, Any]) -> bool:
    """Returns whether an owner is dead or has not answered for STALE_S seconds.

    It watches a silent owner, because the clocks of two hosts may differ.
    """
    here = held.get("machine") == _machine()
    if here and Path("/proc").is_dir():
        if _start_of(int(held["process"])) != held.get("start"):
            return True
        if time.time() - float(held["beat"]) < STALE_S:
            return False
    until = time.monotonic() + STALE_S
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        now = _read(file)
        if now is None or now["beat"] != held["beat"] or now["token"] != held["token"]:
            return now is None
    return True


def _described(owner: dict[str, Any]) -> str:
    return f"process {owner['process']} on {owner['host']} (since {owner['since']})"


def _read(file: Any) -> dict[str, Any] | None:
    """Returns the content of the file, or None without a file that this module wrote."""
    try:
        found = json.loads(file.read_text())
        return found if {"token", "beat", "process", "host", "since"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _write(file: Any, owner: dict[str, Any], instead_of: dict[str, Any] | None) -> bool:
    """Writes the file; returns False if another process was quicker."""
    text = json.dumps(owner)
    if not isinstance(file, Path):
        with reported(file.parent):
            file.write_text(text)
        time.sleep(1.0)  # the last of several writers is the owner
        return (_read(file) or {}).get("token") == owner["token"]
    part = file.with_name(f".{file.name}.{owner['token']}")
    try:
        part.write_text(text)
        if instead_of is None:
            try:
                os.link(part, file)
                return True
            except FileExistsError:
                if _read(file) is not None:
                    return False
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    time.sleep(0.1)
    return (_read(file) or {}).get("token") == owner["token"]


def _beat(lease: Lease) -> None:
    """Writes the time into the file of a lease, or notes who has taken it over."""
    with _changing:
        if _leases.get(lease.where) is not lease or lease.taken_by is not None:
            return
        with contextlib.suppress(Exception):  # a bucket may be out of reach for a while
            held = _read(lease.file)
            if held is not None and held["token"] != lease.owner["token"]:
                lease.taken_by = held
            elif held is not None:
                lease.owner["beat"] = lease.confirmed = time.time()
                _rewrite(lease.file, json.dumps(lease.owner))


def _rewrite(file: Any, text: str) -> None:
    if not isinstance(file, Path):
        file.write_text(text)
        return
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_text(text)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


_beating: list[threading.Thread] = []


def _start_beating() -> None:
    """Starts the thread that writes the time into the files of all leases, if there is none."""

    def beat() -> None:
        while True:
            time.sleep(BEAT_S)
            for lease in list(_leases.values()):
                _beat(lease)

    with _changing:
        if not _beating:
            _beating.append(threading.Thread(target=beat, name="lease", daemon=True))
            _beating[0].start()
            atexit.register(release_all)
