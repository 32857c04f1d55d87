"""Builds a TFDS data set from the hub or a file; prints the number of rows and checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console

from sdjax.config import Prepare
from sdjax.data import sources
from sdjax.errors import UserError


def run(cfg: Prepare) -> None:
    """Writes the data set to `cfg.out`/`cfg.name`/1.0.0."""
    folder = Path(cfg.out) / cfg.name / "1.0.0"
    if folder.exists():
        raise UserError(f"out: {folder} is there already; remove it or choose another name")
    from sdjax.data import builder as builders

    info = builders.build(cfg.name, cfg.splits, cfg.out).info
    console = Console(highlight=False, soft_wrap=True)
    for split, source in cfg.splits.items():
        console.print(f"{split}: {info.splits[split].num_examples} rows")
        for file in (*sources.files(source), *map(Path, info.splits[split].filepaths)):
            console.print(f"  sha256 {checksum(file)}  {file}")


def checksum(file: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
