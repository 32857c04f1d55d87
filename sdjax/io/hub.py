"""Whether what was downloaded is what the hub has. No jax.

The hub's client checks sizes while it downloads, not later, and of contents nothing. Its cache
names every file by the hash that the hub gives for it: SHA-256 of a large file, git's hash of
another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sdjax.errors import UserError

PART = 1 << 24  # bytes read at a time


def check(files: Sequence[Path]) -> None:
    """Raises UserError for the first file of the hub's cache that is not what its hash says.

    Files elsewhere, or without a hash, are left alone. One that was found whole is not read again
    until it changes.
    """
    with ThreadPoolExecutor(4) as pool:
        for file, whole in zip(files, pool.map(_is_whole, files), strict=True):
            if not whole:
                raise UserError(
                    f"{file}: damaged: its contents are not those that the hub has; remove "
                    f"{file.resolve()} and start again, which downloads it"
                )


def _is_whole(file: Path) -> bool:
    blob = file.resolve()
    digest = _digest_by_name(blob)
    if digest is None or blob.parent.name != "blobs":
        return True
    stat = blob.stat()
    found = f"{stat.st_size} {stat.st_mtime_ns}"
    seen = _seen(blob)
    if seen.is_file() and seen.read_text() == found:
        return True
    if digest.name == "sha1":  # git hashes a header too
        digest.update(b"blob %d\0" % stat.st_size)
    with blob.open("rb") as stream:
        while part := stream.read(PART):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        return False
    try:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(found)
    except OSError:
        pass  # It will be read again next time.
    return True


def _digest_by_name(blob: Path) -> hashlib._Hash | None:
    if set(blob.name) - set("0123456789abcdef"):
        return None
    kinds = {40: lambda: hashlib.sha1(usedforsecurity=False), 64: hashlib.sha256}
    make = kinds.get(len(blob.name))
    return make() if make else None


def _seen(blob: Path) -> Path:
    """Returns the file that says of a blob that it was found whole, and when it had changed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(str(blob).encode()).hexdigest()[:16]
    return cache / "sdjax" / "whole" / f"{place}-{blob.name[:16]}"
