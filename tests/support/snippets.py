"""The code that README and docs show."""

from __future__ import annotations

import re
from pathlib import Path

from paths import ROOT

HOW_TO = ROOT / "docs" / "how-to"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(
    r"`([\w/]+\.(?:py|jsonl))`[^\n`]*:\n\n```(?:python|json)\n(.*?)^```", re.DOTALL | re.MULTILINE
)


def python(page: Path) -> list[str]:
    """Returns the Python blocks of a page."""
    return _BLOCK.findall(page.read_text())


def files(page: Path) -> dict[str, str]:
    """Returns the files that a page tells its reader to write, by name.

    The line before such a block ends in the file's name and a colon.
    """
    return dict(_NAMED.findall(page.read_text()))


def is_config(code: str) -> bool:
    """Returns whether a block is a whole config file."""
    return re.search(r"^config = (?!load)", code, re.MULTILINE) is not None


def write(page: Path, folder: Path) -> None:
    """Writes the files of a page into a folder."""
    for name, text in files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def links(page: Path) -> list[str]:
    """Returns the targets of a page's links and pictures, without those on the web."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
