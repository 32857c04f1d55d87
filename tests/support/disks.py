"""Small file systems that tests fill, make read-only or take away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FAULTS = {
    "full": "cat /dev/zero > {disk}/filler 2>/dev/null || true",
    # A second mount above the first, because the kernel makes none read-only while files are open.
    "read-only": "mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}",
    # Again where a checkpoint that is being written fills a directory as it is removed.
    "gone": "until rm -r {out}; do test -e {out} || break; done 2>/dev/null",
}
"""Commands that take a disk from a run whose directory is `out`."""
CURES = {"full": "rm {disk}/filler", "read-only": "umount -l {disk}", "gone": "true"}
"""Commands that give it back."""


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mounts a small file system; skips the test without the right to do so."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", *options, "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes more rights; the limit on file sizes is tested all the same")
    try:
        yield folder
    finally:
        while subprocess.run(["umount", "-l", str(folder)], capture_output=True).returncode == 0:
            pass
