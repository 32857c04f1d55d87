"""Writes a config, a reward and rows, which a user edits: `sdjax init NAME`.

They are copies of configs/own/, so the tests of that folder are tests of what a user gets.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from sdjax.config import packaged
from sdjax.errors import UserError, writing

TEMPLATE = "mine"
"""The name that the copies replace by their own."""
COMMAND = f"python -m sdjax.main --config configs/own/{TEMPLATE}.py"
"""The command in the template; in a copy it starts the copy."""


def write(given: str) -> list[Path]:
    """Writes the files of the name `given`, which may begin with a folder, and returns them.

    Raises UserError, before it writes anything, if the name cannot be that of a module or if one of
    the files exists.
    """
    target = Path(given).with_suffix("") if given.endswith(".py") else Path(given)
    name = target.name
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise UserError(f"init {given!r}: the name must be a letter, then letters, digits and _")
    texts = {
        target.with_name(file.name.replace(TEMPLATE, name)): file.read_text(encoding="utf-8")
        for file in sorted((packaged.folder() / "own").glob(f"{TEMPLATE}*.*"))
    }
    for file in texts:
        if file.exists():
            raise UserError(f"init {given!r}: {file} exists; remove it or choose another name")
    if importlib.util.find_spec(name) is not None:
        raise UserError(
            f"init {given!r}: {name} is a Python module, which {name}.py would hide; choose "
            f"another name, such as my_{name}"
        )
    started = f"sdjax --config {target}.py"
    for file, text in texts.items():
        text = text.replace(COMMAND, started).replace("configs/own/", "")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(re.sub(rf"\b{TEMPLATE}(?=\b|_)", name, text), encoding="utf-8")
    return list(texts)
