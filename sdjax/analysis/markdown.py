"""Writes tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; a cell's lines become one, and a bar in it stays a bar."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(c.split()).replace("|", "\\|") for c in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
