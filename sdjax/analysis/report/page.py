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
    *("base.js", "list.js", "charts.js", "overview.js", "curves.js", "words.js"),
    *("answers.js", "rollouts.js", "detail.js", "tokens.js", "main.js"),
)
FIRST = ("answers",)
"""Blocks before the scripts, beside the report and the index of the rollouts."""


def _read(name: str) -> str:
    return (resources.files(__package__) / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def assemble(
    title: str, report: Mapping[str, Any], rollouts: CompressedBlock, others: Mapping[str, str]
) -> str:
    """Returns the HTML file.

    `report` holds what the first view needs. `others` are packed blocks by name. Those in FIRST
    are needed at once, the others when a reader asks for them.
    """
    later = {n: text for n, text in {**others, **rollouts.blocks}.items() if n not in FIRST}
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
        first=_block("report", packed(report))
        + _block("index", packed(rollouts.index))
        + "".join(_block(name, others[name]) for name in FIRST),
        blocks="".join(_block(name, text) for name, text in later.items()),
    )


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="block-{name}">{text}</script>\n'
