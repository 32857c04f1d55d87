r"""Mathematical questions with an answer in \boxed{}: the papers' sets, or a file of yours."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sdjax import config
from sdjax.data.rows import Skipped, convert_rows
from sdjax.data.sources import read_rows
from sdjax.errors import UserError
from sdjax.own_functions import Function
from sdjax.records import Example
from sdjax.tasks import Task
from sdjax.tasks.from_rows import RowTask, answer_and_solution, divided, with_last

_PAPER = "https://raw.githubusercontent.com/beanie00/self-distillation-analysis/main/data/math"
SETS = {
    "dapo_math": "hf://datasets/BytedTsinghua-SIA/DAPO-Math-17k/data/dapo-math-17k.parquet",
    "gsm8k_train": "hf://datasets/openai/gsm8k/main/train-*.parquet",
    "gsm8k": "hf://datasets/openai/gsm8k/main/test-*.parquet",
    "aime26": "hf://datasets/MathArena/aime_2026/data/train-*.parquet",
    "hmmt25": "hf://datasets/MathArena/hmmt_feb_2025/data/train-*.parquet",
    **{n: f"{_PAPER}/evaluation/{n}.parquet" for n in ("aime24", "aime25", "amc23", "math500")},
    **{
        n: f"{_PAPER}/section_6_2/{n}.parquet"
        for n in ("seen_1x64", "seen_8x8", "seen_64", "seen_128", "seen_512")
    },
}
"""The source of each set that has a name."""

# The columns of a question, in order of preference: verl's rows may have others beside the prompt.
QUESTIONS = ("prompt", "problem", "question", "messages", "conversations")
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class Math(RowTask):
    """Mathematical questions. The answer of a completion stands in a box."""

    train: str = "dapo_math"
    """A named set (dapo_math, seen_1x64, seen_8x8, seen_64, seen_128, seen_512, gsm8k_train, ...)
    or a source as sdjax/data/sources.py describes them. Empty for evaluation only."""
    test: str = "aime24"
    """A named set (aime24, aime25, aime26, hmmt25, amc23, math500, gsm8k, ...) or a source of the
    held-out questions. Questions that occur in `train` are left out. If empty, questions of `train`
    are held out."""
    held_out: int = 10_000
    """Rows of `test` that are used, at most; or the number of questions held out of `train`. 0:
    none."""
    solution: str = ""
    """Column of the worked solution, or a path. If empty, solution, or extra_info.solution beside
    reward_model."""
    grader: Function = "math"
    """math, the default rule; math_reference, the papers' training reward; math_eval_reference,
    the evaluation of arXiv:2603.24472; or a function of yours. See docs/graders.md."""
    deduplicate: bool = True
    """Use each training question once, however often its row is repeated."""
    instruction: str = INSTRUCTION
    """Follows every question that does not end with it already."""

    RULES: ClassVar[tuple[str, ...]] = ("math", "math_reference", "math_eval_reference")


def load(cfg: Math, data: config.Data) -> Task:
    """Returns the task of the two sets."""

    def read(name: str, split: str) -> tuple[list[Example], tuple[Skipped, ...]]:
        return _read(cfg, name, split, data)

    train, held_out, skipped = divided(cfg, read, cfg.train, cfg.test, deduplicate=cfg.deduplicate)
    return Task(
        name="math",
        train=train,
        held_out=held_out,
        grader=cfg.task_grader(),
        skipped=skipped,
    )


def _read(
    cfg: Math, name: str, split: str, data: config.Data
) -> tuple[list[Example], tuple[Skipped, ...]]:
    source = SETS.get(name, name)
    if source == name and name.isidentifier() and not Path(name).exists():
        near = difflib.get_close_matches(name, SETS, n=1)
        remedy = f"perhaps you meant {near[0]}" if near else f"sets are {', '.join(SETS)}"
        raise UserError(f"task.{split} is {name!r}: neither a set nor a file; {remedy}")

    def convert(row: dict[str, Any], number: int) -> Example:
        messages = with_last(
            cfg.prompt(row, QUESTIONS), lambda question: prompt(question, cfg.instruction)
        )
        answer, solution = answer_and_solution(row, cfg)
        return Example(
            id=f"{split}-{number}",
            messages=messages,
            answer=answer,
            solution=solution,
            task="math",
            columns=cfg.columns(row),
        )

    return convert_rows(source, read_rows(source), convert, data.on_bad_row)


_DAPO_HEAD = re.compile(
    r"\ASolve the following math problem step by step\.\s*The last line of your response should "
    r"be of the form Answer: \$Answer \(without quotes\) where \$Answer is the answer to the "
    r"problem\.\s*"
)
_DAPO_TAIL = re.compile(r'\s*Remember to put your answer on its own line after "Answer:"\.?\s*\Z')


def prompt(question: str, instruction: str = INSTRUCTION) -> str:
    """Returns a question in which `instruction`, at its end, replaces DAPO's instructions.

    A question without DAPO's instructions that ends with `instruction` stays as it is. Otherwise
    this does what experiments/math/change_math_prompts.py of arXiv:2603.24472's code does.
    """
    bare = _DAPO_TAIL.sub("", _DAPO_HEAD.sub("", question)).strip()
    done = bare == question.strip() and question.endswith(instruction)
    return question if done else bare + instruction
