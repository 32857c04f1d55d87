"""Tool calls (ToolAlpaca) in the row format of the SDPO paper's code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from sdjax import config
from sdjax.data.rows import RowError, Skipped, convert_rows, field
from sdjax.data.sources import read_rows
from sdjax.graders import tool_calls
from sdjax.own_functions import Function
from sdjax.records import Example
from sdjax.tasks import Task
from sdjax.tasks.from_rows import RowTask, divided

HOME = "https://raw.githubusercontent.com/lasgroup/SDPO/main/datasets/tooluse"
QUESTIONS = ("prompt", "question", "messages", "conversations")


@dataclass(frozen=True, kw_only=True)
class ToolUse(RowTask):
    """Requests that a completion answers by calling tools."""

    train: str = f"{HOME}/train.json"
    """Source of rows with prompt and answer, as sdjax/data/sources.py describes sources. Empty
    for evaluation only."""
    test: str = f"{HOME}/test.json"
    """Source of the held-out rows. Rows whose prompt occurs in `train` are left out. If empty, rows
    of `train` are held out."""
    held_out: int = 10_000
    """Rows of `test` that are used, at most; or the number of rows held out of `train`. 0: none."""
    grader: Function = "tooluse"
    """tooluse compares call by call. tooluse_reference merges the inputs of all calls and shows
    the expected calls in its feedback, as the papers' code does. Or a function of yours."""
    reveal_answer: bool = False
    """Whether the feedback of `tooluse` shows the expected calls."""

    RULES: ClassVar[tuple[str, ...]] = ("tooluse", "tooluse_reference")


def load(cfg: ToolUse, data: config.Data) -> Task:
    """Returns the task of the two sources."""
    # The reference has no such option: its feedback always shows the expected calls.
    options = {"reveal": cfg.reveal_answer} if cfg.grader == "tooluse" else {}
    train, held_out, skipped = divided(
        cfg, lambda source, split: _read(cfg, source, split, data), cfg.train, cfg.test
    )
    return Task(
        name="tooluse",
        train=train,
        held_out=held_out,
        grader=cfg.task_grader(**options),
        skipped=skipped,
    )


def _read(
    cfg: ToolUse, source: str, split: str, data: config.Data
) -> tuple[list[Example], tuple[Skipped, ...]]:
    def convert(row: dict[str, Any], number: int) -> Example:
        name = cfg.answer_path(row)
        value = field(row, name)
        # The calls may be a list, or the JSON text of one.
        answer = value if isinstance(value, str) else json.dumps(value)
        try:
            tool_calls.expected_calls(answer)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RowError(f"field '{name}' holds no list of calls ({error!r})") from None
        messages = cfg.prompt(row, QUESTIONS)
        return Example(
            id=f"{split}-{number}",
            messages=messages,
            answer=answer,
            task="tooluse",
            columns=cfg.columns(row),
        )

    return convert_rows(source, read_rows(source), convert, data.on_bad_row)
