"""Assembles the HTML file from page, styles, scripts and data.

The page can load and run only what this module puts into it. Its Content-Security-Policy lists the
hashes of its scripts and styles, and no address. The data are base64, which holds no character with
a meaning in HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from sdjax.analysis.report.blocks import CompressedBlock, packed

STYLES = ("uPlot.min.css", "style.css")
LIBRARY = "uPlot.iife.min.js"
LICENCE = "uPlot.LICENSE"
SCRIPTS = (
    *("base.js", "overview.js", "curves.js", "words.js"),
    *("rollouts.js", "detail.js", "tokens.js", "main.js"),
)


def _read(name: str) -> str:
    return (resources.files(__package__) / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def assemble(title: str, report: Mapping[str, Any], rollouts: CompressedBlock) -> str:
    """Returns the HTML file; `report` holds the data of all views except the rollouts."""
    styles = [_read(name) for name in STYLES]
    # The files form one script, so that they share names without adding any to the window.
    own = '"use strict";\n{\n' + "\n".join(map(_read, SCRIPTS)) + "\n}\n"
    library = f"/*\n{_read(LICENCE)}*/\n{_read(LIBRARY)}"
    return Template(_read("page.html")).substitute(
        title=html.escape(title.encode("utf-8", "replace").decode()),
        style_hashes=" ".join(map(_hash, styles)),
        script_hashes=" ".join(map(_hash, (library, own))),
        styles="\n".join(f"<style>{text}</style>" for text in styles),
        scripts=f"<script>{library}</script>\n<script>{own}</script>",
        first=_block("report", packed(report)) + _block("index", packed(rollouts.index)),
        blocks="".join(_block(name, text) for name, text in rollouts.blocks.items()),
    )


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="block-{name}">{text}</script>\n'
