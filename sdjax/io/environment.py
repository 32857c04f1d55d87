"""Tells the versions of the program and of its libraries, and the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import sdjax

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("transformers", "tokenizers"),
)
"""Libraries whose versions a run records."""


def versions() -> dict[str, Any]:
    """Returns the versions of sdjax, of Python and of the libraries; null for one that is absent.

    In a clone `commit` is that of sdjax, and `dirty` tells whether its files have changed since.
    Elsewhere both are null.
    """
    commit, dirty = _commit(Path(sdjax.__file__).parents[1])
    return {
        "sdjax": sdjax.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> tuple[str | None, bool | None]:
    """Returns the commit of a clone, and whether tracked files have changed; None elsewhere."""
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changed is None else bool(changed)


def _git(root: Path, *args: str) -> str | None:
    """Returns the output of git; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
