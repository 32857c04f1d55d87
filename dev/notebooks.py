"""Runs the notebooks from top to bottom, stores their outputs, and writes their badges.

    python dev/notebooks.py                  # all of them, some 15 minutes on two cores
    python dev/notebooks.py quickstart       # one
    python dev/notebooks.py --badges         # none; writes the badges alone

Each runs in an empty folder. An output of more than LARGEST bytes, such as the page of a report, is
left out. So are stderr, lines of progress, and the folder of installed packages.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
REPOSITORY = ""
"""OWNER/NAME on GitHub, where Colab finds the notebooks. While it is empty, the badge opens Colab's
own page, where File > Upload notebook takes the file."""
LARGEST = 100_000
PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"


def badge(name: str) -> str:
    """Returns the Markdown of the badge that opens a notebook in Colab."""
    place = f"github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb" if REPOSITORY else ""
    return f"[![Open in Colab]({PICTURE})](https://colab.research.google.com/{place})"


def with_badge(book: dict, name: str) -> dict:
    """Returns the notebook with the badge as the first line of its first cell."""
    first = book["cells"][0]
    text = "".join(first["source"])
    if text.startswith("[!["):
        text = text.partition("\n\n")[2]
    first["source"] = f"{badge(name)}\n\n{text}".splitlines(keepends=True)
    return book


def executed(book: dict) -> dict:
    """Returns the notebook with the outputs of a run in an empty folder."""
    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        cells = nbformat.reads(json.dumps(book), as_version=4)
        resources = {"metadata": {"path": folder}}
        NotebookClient(cells, timeout=3600, resources=resources).execute()
        done = json.loads(nbformat.writes(cells))
    for cell in done["cells"]:
        cell["metadata"].pop("execution", None)
        if "outputs" in cell:
            cell["outputs"] = kept(cell["outputs"])
    return done


def kept(outputs: list[dict]) -> list[dict]:
    """Returns outputs without large ones, stderr, lines of progress and this machine's folders."""
    out = []
    for one in outputs:
        if one["output_type"] == "stream":
            text = "".join(one["text"]).replace(sysconfig.get_paths()["purelib"] + "/", "")
            one["text"] = re.sub(r"^.*: \d+ s\n", "", text, flags=re.MULTILINE).splitlines(True)
        empty = one["output_type"] == "stream" and not one["text"]
        if one.get("name") != "stderr" and not empty and len(json.dumps(one)) <= LARGEST:
            out.append(one)
    return out


def main(arguments: list[str]) -> None:
    """Rewrites the notebooks that the arguments name."""
    chosen = [name for name in arguments if not name.startswith("-")]
    names = chosen or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        file = FOLDER / f"{name}.ipynb"
        book = with_badge(json.loads(file.read_text(encoding="utf-8")), name)
        if "--badges" not in arguments:
            book = executed(book)
        file.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
