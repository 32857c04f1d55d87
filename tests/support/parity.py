"""A task of which any text may be right, and the metrics that docs/metrics.md names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paths import ROOT

from sdjax import config
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.records import Example, Grade
from sdjax.tasks import Task

PAGE = ROOT / "docs" / "metrics.md"


@dataclass(frozen=True, kw_only=True)
class Parity(config.TaskConfig):
    """A text is right if its code points have an even sum; after `right_until` texts, none is."""

    held_out: int = 4
    right_until: int = 1_000_000


def load(cfg: Parity, data: config.Data) -> Task:
    def example(i: int) -> Example:
        message = {"role": "user", "content": f"Question {i:04}"}
        return Example(id=str(i), messages=(message,), answer="", task="parity")

    graded = []

    def grade(attempts: Sequence[Attempt]) -> list[Grade]:
        graded.extend(attempts)
        all_right = cfg.right_until < 1_000_000 and len(graded) <= cfg.right_until
        none = len(graded) > cfg.right_until
        right = [not none and (all_right or sum(map(ord, a.text)) % 2 == 0) for a in attempts]
        return [Grade(reward=float(r), correct=r, details={"prediction": str(r)}) for r in right]

    return Task(
        name="parity",
        train=[example(i) for i in range(60)],
        held_out=[example(i) for i in range(100, 100 + cfg.held_out)],
        grader=grade,
    )


def page() -> dict[str, re.Pattern]:
    """Returns a pattern for each name in the first column of the page's tables."""
    cells = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [cell for cell in cells if "/" in cell]  # the page has a table of graders too
    assert len(cells) == len(set(cells)) > 30
    return {
        cell: re.compile(re.escape(cell).replace("K", r"\d+").replace("NAME", r"\w+"))
        for cell in cells
    }
