"""Tool calls (ToolAlpaca) in the row format of the SDPO paper's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sdjax import config
from sdjax.data.rows import RowError, Skipped, convert_rows, text_field, unseen
from sdjax.data.sources import read_rows
from sdjax.graders import grader, tool_calls
from sdjax.records import Example, Message
from sdjax.tasks import Task

HOME = "https://raw.githubusercontent.com/lasgroup/SDPO/main/datasets/tooluse"


@dataclass(frozen=True, kw_only=True)
class ToolUse(config.TaskConfig):
    """Requests that a completion answers by calling tools."""

    train: str = f"{HOME}/train.json"
    """Source of rows with prompt and answer, as sdjax/data/sources.py describes sources. Empty
    for evaluation only."""
    test: str = f"{HOME}/test.json"
    """Source of the held-out rows. Rows whose prompt occurs in `train` are left out."""
    held_out: int = 10_000
    """Rows of `test` that are used, at most."""
    grader: Literal["tooluse", "tooluse_reference"] = "tooluse"
    """tooluse compares call by call. tooluse_reference merges the inputs of all calls and shows
    the expected calls in its feedback, as the papers' code does."""
    reveal_answer: bool = False
    """Whether the feedback of `tooluse` shows the expected calls."""


def load(cfg: ToolUse, data: config.Data) -> Task:
    """Returns the task of the two sources."""
    train: list[Example] = []
    skipped: tuple[Skipped, ...] = ()
    if cfg.train:
        train, skipped = _read(cfg.train, "train", data)
    test, skipped_test = _read(cfg.test, "test", data)
    # The reference has no such option: its feedback always shows the expected calls.
    options = {"reveal": cfg.reveal_answer} if cfg.grader == "tooluse" else {}
    held_out, seen = unseen(test, train, cfg.test)
    return Task(
        name="tooluse",
        train=train,
        held_out=held_out[: cfg.held_out],
        grader=grader(cfg.grader, **options),
        skipped=skipped + skipped_test + seen,
    )


def _read(source: str, split: str, data: config.Data) -> tuple[list[Example], tuple[Skipped, ...]]:
    def convert(row: dict[str, Any], number: int) -> Example:
        answer = text_field(row, "answer")
        try:
            tool_calls.expected_calls(answer)
        except (ValueError, KeyError, TypeError) as error:
            raise RowError(f"field 'answer' holds no list of calls ({error!r})") from None
        messages: list[Message] = [{"role": "user", "content": text_field(row, "prompt")}]
        if row.get("system"):
            messages.insert(0, {"role": "system", "content": text_field(row, "system")})
        return Example(
            id=f"{split}-{number}", messages=tuple(messages), answer=answer, task="tooluse"
        )

    return convert_rows(source, read_rows(source), convert, data.on_bad_row)
