r"""Mathematical questions with an answer in \boxed{}: the papers' sets, or a file of yours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sdjax import config
from sdjax.data.rows import RowError, Skipped, columns, convert_rows, distinct, text_field, unseen
from sdjax.data.sources import read_rows
from sdjax.graders import grader
from sdjax.graders.answer.regions import last_boxed
from sdjax.records import Example, Message
from sdjax.tasks import Task

_PAPER = "https://raw.githubusercontent.com/beanie00/self-distillation-analysis/main/data/math"
SETS = {
    "dapo_math": "hf://datasets/BytedTsinghua-SIA/DAPO-Math-17k/data/dapo-math-17k.parquet",
    "gsm8k_train": "hf://datasets/openai/gsm8k/main/train-*.parquet",
    "gsm8k": "hf://datasets/openai/gsm8k/main/test-*.parquet",
    **{n: f"{_PAPER}/evaluation/{n}.parquet" for n in ("aime24", "aime25", "amc23", "math500")},
    **{
        n: f"{_PAPER}/section_6_2/{n}.parquet"
        for n in ("seen_1x64", "seen_8x8", "seen_64", "seen_128", "seen_512")
    },
}
"""The source of each set that has a name."""

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class Math(config.TaskConfig):
    """Mathematical questions. The answer of a completion stands in a box."""

    train: str = "dapo_math"
    """A named set (dapo_math, seen_1x64, seen_8x8, seen_64, seen_128, seen_512, gsm8k_train, ...)
    or a source as sdjax/data/sources.py describes them. Empty for evaluation only."""
    test: str = "aime24"
    """A named set (aime24, aime25, amc23, math500, gsm8k, ...) or a source of the held-out
    questions. Questions that occur in `train` are left out."""
    held_out: int = 10_000
    """Rows of `test` that are used, at most."""
    grader: Literal["math", "math_reference", "math_eval_reference"] = "math"
    """The default rule, the papers' training reward, or the evaluation of arXiv:2603.24472; see
    docs/graders.md."""
    deduplicate: bool = True
    """Use each training question once, however often its row is repeated."""
    instruction: str = INSTRUCTION
    """Follows every question that does not end with it already."""
    system: str = ""
    """System prompt. If empty, there is none, as in the papers."""


def load(cfg: Math, data: config.Data) -> Task:
    """Returns the task of the two sets."""
    train: list[Example] = []
    skipped: tuple[Skipped, ...] = ()
    if cfg.train:
        train, skipped = _read(cfg, cfg.train, "train", data)
        if cfg.deduplicate:
            train, repeated = distinct(train, cfg.train)
            skipped += repeated
    test, skipped_test = _read(cfg, cfg.test, "test", data)
    held_out, seen = unseen(test, train, cfg.test)
    return Task(
        name="math",
        train=train,
        held_out=held_out[: cfg.held_out],
        grader=grader(cfg.grader),
        skipped=skipped + skipped_test + seen,
    )


def _read(
    cfg: Math, name: str, split: str, data: config.Data
) -> tuple[list[Example], tuple[Skipped, ...]]:
    source = SETS.get(name, name)

    def convert(row: dict[str, Any], number: int) -> Example:
        question, answer, solution = fields(row)
        user: Message = {"role": "user", "content": prompt(question, cfg.instruction)}
        system: list[Message] = [{"role": "system", "content": cfg.system}] if cfg.system else []
        return Example(
            id=f"{split}-{number}",
            messages=(*system, user),
            answer=answer,
            solution=solution,
            task="math",
        )

    return convert_rows(source, read_rows(source), convert, data.on_bad_row)


def fields(row: dict[str, Any]) -> tuple[str, str, str | None]:
    r"""Returns question, answer and worked solution of a row in one of three schemas.

    - prompt (messages) and reward_model.ground_truth, with extra_info.solution,
    - problem or question, and answer, with solution,
    - problem or question, and a solution whose last box holds the answer.

    The solution may be absent in the first two. If an answer holds "####" (GSM8K), the text before
    this mark is the solution. Raises RowError for other rows.
    """
    if "reward_model" in row:
        info = row.get("extra_info")
        solution = _solution(info, "extra_info.solution") if isinstance(info, dict) else None
        return _user_message(row), text_field(row, "reward_model", "ground_truth"), solution
    name = next((n for n in ("problem", "question") if n in row), None)
    if name is None:
        raise RowError(
            f"has the columns {columns(row)}; needs prompt and reward_model, or problem "
            "(or question) and answer"
        )
    question, solution = text_field(row, name), _solution(row, "solution")
    if row.get("answer") is None and solution is not None:
        boxed = last_boxed(solution)
        if boxed is not None:
            return question, boxed, solution
    if isinstance(row.get("answer"), int | float) and not isinstance(row["answer"], bool):
        return question, str(row["answer"]), solution
    worked, mark, answer = text_field(row, "answer").rpartition("####")
    return (question, answer.strip(), worked.strip()) if mark else (question, answer, solution)


def _solution(row: dict[str, Any], path: str) -> str | None:
    """Returns the text in column solution, None if the row has no such column."""
    solution = row.get("solution")
    if solution is not None and not isinstance(solution, str):
        raise RowError(f"field '{path}' is {type(solution).__name__}, not text")
    return solution


def _user_message(row: dict[str, Any]) -> str:
    """Returns the text of the one user message in column prompt."""
    messages = row.get("prompt")
    if messages is None or isinstance(messages, str):
        return text_field(row, "prompt")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise RowError("field 'prompt' holds no messages")
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise RowError("field 'prompt' holds more or less than one user message")
    return text_field({"prompt": messages[0]}, "prompt", "content")


_DAPO_HEAD = re.compile(
    r"\ASolve the following math problem step by step\.\s+The last line of your response should "
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
