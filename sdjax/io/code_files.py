"""Checksums of the code that a run executes, by file: of sdjax, the config and what it imports."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import sysconfig
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import sdjax

PACKAGE = Path(sdjax.__file__).parent
INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
"""Paths of installed packages, whose versions a run records."""
LISTED = 5
"""Files that a line names."""

_seen: weakref.WeakKeyDictionary[ModuleType, str] = weakref.WeakKeyDictionary()
"""The checksum of each module's file when it was first asked for. Whoever edits a file while the
program runs does not change what runs."""


def checksums() -> dict[str, str]:
    """Returns 16 hexadecimal digits of the SHA-256 of each file of code, by its name.

    These are all files of sdjax, and those of loaded modules that are neither installed nor part of
    Python: a config file, and the files beside it that it imports. A name is that of the module, as
    a path, so that it is the same on hosts whose folders differ.
    """
    return dict(_of_sdjax()) | dict(_of_loaded_modules())


@functools.cache
def _of_sdjax() -> Mapping[str, str]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {f"sdjax/{file.relative_to(PACKAGE).as_posix()}": _checksum(file) for file in files}


def _of_loaded_modules() -> Iterable[tuple[str, str]]:
    """Yields name and checksum of each loaded module that is not sdjax's, Python's or installed."""
    places = (PACKAGE, Path(os.__file__).parent, *map(sysconfig.get_path, ("stdlib", "platstdlib")))
    others = tuple(f"{place}{os.sep}" for place in places)
    # A copy, because another thread may import meanwhile.
    for name, module in sorted(sys.modules.copy().items()):
        if not isinstance(module, ModuleType):
            continue
        # Some modules make up attributes, so only what stands in them counts.
        at = module.__dict__.get("__file__")
        if not isinstance(at, str) or at.startswith(others) or INSTALLED.search(at):
            continue
        file = Path(at)
        if module not in _seen:
            if not file.is_file():
                continue
            _seen[module] = _checksum(file)
        *parents, last = name.split(".")
        package = [last] if file.stem == "__init__" else []
        yield "/".join([*parents, *package, file.name]), _seen[module]


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def listed(names: Iterable[str]) -> str:
    """Returns the first names of files as a text, and the number of the others."""
    first, others = sorted(names)[:LISTED], len([*names][LISTED:])
    return ", ".join(first) + (f" and {others} more" if others else "")
