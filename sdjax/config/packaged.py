"""Finds the configs that come with the package, by names such as package:quickstart.

A wheel holds them in sdjax/configs. A clone, also one that is installed with `pip install -e`, has
them in configs/ at its top.
"""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path

from sdjax.errors import UserError

SCHEME = "package:"
_BINDS = re.compile(r"^config\s*=", re.MULTILINE)


def folder() -> Path:
    """Returns the folder that holds the configs."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Returns the name of every config: its path in the folder, without .py."""
    top = folder()
    files = sorted(top.rglob("*.py"), key=lambda file: (len(file.parts), str(file)))
    found = [file for file in files if _BINDS.search(file.read_text(encoding="utf-8"))]
    return [file.relative_to(top).with_suffix("").as_posix() for file in found]


def place(file: str | Path) -> Path:
    """Returns the path of a config file, which may be given as package:NAME.

    Raises UserError, with the nearest name, if no config of the package has the name.
    """
    text = str(file)
    if not text.startswith(SCHEME):
        return Path(file)
    name = text.removeprefix(SCHEME).removesuffix(".py")
    known = names()
    if name not in known:
        near = meant(name, known)
        remedy = f"perhaps you meant {near}" if near else "`sdjax configs` lists all"
        raise UserError(f"{text}: no such config in the package; {remedy}")
    return folder() / f"{name}.py"


def meant(word: str, known: list[str]) -> str:
    """Returns package:NAME of the config that a path or name seems to mean; "" for none."""
    word = word.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    last = {name.rpartition("/")[2]: name for name in reversed(known)}
    for names_of in ({name: name for name in known}, last):
        for near in difflib.get_close_matches(word, names_of, n=1, cutoff=0.75):
            return SCHEME + names_of[near]
    return ""


def listing(part: str = "") -> str:
    """Returns a line per config with its first sentence; `part` limits it to names that hold it.

    Raises UserError if no name does.
    """
    known = names()
    chosen = [name for name in known if part.lower() in name.lower()]
    if not chosen:
        near = meant(part, known)
        raise UserError(
            f"no config of the package has {part!r} in its name"
            + (f"; perhaps you meant {near}" if near else "; `sdjax configs` lists all")
        )
    width = max(map(len, chosen)) + len(SCHEME)
    return "\n".join(f"{SCHEME + name:<{width}}  {_sentence(name)}" for name in chosen)


def _sentence(name: str) -> str:
    """Returns the first paragraph of a config's docstring, which is one sentence, on one line."""
    text = (folder() / f"{name}.py").read_text(encoding="utf-8")
    return " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())
