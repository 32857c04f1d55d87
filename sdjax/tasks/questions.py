r"""Questions from any rows: your own files, a data set of the hub, rows made for TRL or verl."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sdjax import config, own_functions
from sdjax.data import hub_sets
from sdjax.data.rows import RowError, Skipped, answer_field, convert_rows
from sdjax.data.sources import SUFFIXES, read_rows
from sdjax.errors import UserError
from sdjax.graders import RULES, tool_calls
from sdjax.graders.answer import expression, number
from sdjax.graders.workers.grade_batch import Grader
from sdjax.own_functions import Function
from sdjax.records import Example
from sdjax.tasks import Task
from sdjax.tasks.from_rows import (
    RowTask,
    answer_and_solution,
    divided,
    letter,
    options,
    own_or_rule,
    with_last,
)
from sdjax.tasks.math import INSTRUCTION
from sdjax.tasks.rewarding import ungraded

QUESTIONS = ("prompt", "question", "problem", "instruction", "messages", "conversations")
CHOOSE = "\nAnswer with the letter of one option, as in <answer>A</answer>."
SHORT = 100
"""Characters that a text without a box has at most to be an answer and no worked solution."""
OPTIONS, ANSWER, NO_ANSWER = "has options", "has an answer", "has no answer"
ELSEWHERE = ("code", "code_reference", "reasoning_gym")
"""Rules whose answers only their own tasks write."""
FORMS = {
    "number": "one number",
    "choice": "one letter",
    "choice_reference": "one capital letter",
    "expression": "numbers and their target, such as 3 4 5 = 17",
    "tooluse": "a JSON list of calls",
    "tooluse_reference": "a JSON list of calls",
}
"""What the answer of a row must be, for the rules that cannot read every text."""


@dataclass(frozen=True, kw_only=True)
class Questions(RowTask):
    """Questions of any kind, with an answer, options, or a reward of yours."""

    train: str = ""
    """Source of the training rows: a file, or a data set of the hub such as
    openai/gsm8k:main/train; sdjax/data/sources.py describes all kinds. Empty for evaluation
    only."""
    test: str = ""
    """Source of the held-out rows. Rows whose prompt occurs in `train` are left out. If empty, rows
    of `train` are held out."""
    held_out: int = 200
    """Rows of `test` that are used, at most; or the number of rows held out of `train`. 0: none."""
    solution: str = ""
    """Column of the worked solution, or a path. If empty, solution, or extra_info.solution beside
    reward_model."""
    choices: str = "choices"
    """Column of the options of a multiple-choice question, as in SciKnowEval. Empty: no column is
    read so."""
    grader: Function = ""
    """A rule of docs/graders.md, or a function of yours. If empty: choice for rows with options;
    number where all answers are numbers and no prompt asks for a box; else math, which reads the
    answer in a box."""
    instruction: str | None = None
    """Follows every question. None: questions that are texts get what the grader needs, an answer
    in a box or a letter in tags; lists of messages, and rows without an answer, get nothing."""
    deduplicate: bool = False
    """Use each training prompt once, however often its row is repeated."""

    RULES: ClassVar[tuple[str, ...]] = ("", *(rule for rule in RULES if rule not in ELSEWHERE))


def load(cfg: Questions, data: config.Data) -> Task:
    """Returns the task of the two sources."""
    kinds: dict[str, str] = {}

    def read(source: str, split: str) -> tuple[list[Example], tuple[Skipped, ...]]:
        if hub_sets.is_id(source, SUFFIXES):
            source = hub_sets.with_split(source, split)
        return _read(cfg, source, split, data, kinds)

    train, held_out, skipped = divided(cfg, read, cfg.train, cfg.test, deduplicate=cfg.deduplicate)
    return Task(
        name="questions",
        train=train,
        held_out=held_out,
        grader=_grader(cfg, kinds, [*train, *held_out]),
        skipped=skipped,
    )


def _read(
    cfg: Questions, source: str, split: str, data: config.Data, kinds: dict[str, str]
) -> tuple[list[Example], tuple[Skipped, ...]]:
    """Returns the examples of a source and the rows left out.

    `kinds` gets the first row of each kind: with options, with an answer, without an answer.
    """

    def convert(row: dict[str, Any], row_number: int) -> Example:
        messages = cfg.prompt(row, QUESTIONS)
        choices = options(row, cfg.choices) if cfg.choices else None
        if choices is None:
            answer, solution = _answer(row, cfg)
        else:
            answer, solution = letter(row, cfg.answer_path(row), choices), None
            listed = "\n".join(f"{x}: {option}" for x, option in choices.items())
            messages = with_last(messages, lambda question: f"{question}\n\n{listed}")
        if answer and not _reads(cfg.grader, answer):
            raise RowError(
                f"the answer is {answer[:40]!r}: the rule {cfg.grader} takes {FORMS[cfg.grader]}"
            )
        kind = OPTIONS if choices else ANSWER if answer else NO_ANSWER
        kinds.setdefault(kind, f"{source}:{row_number}")
        added = _instruction(cfg, row, kind)
        return Example(
            id=f"{split}-{row_number}",
            messages=with_last(messages, lambda q: q if q.endswith(added) else q + added),
            answer=answer,
            solution=solution,
            task="questions",
            columns=cfg.columns(row),
        )

    return convert_rows(source, read_rows(source), convert, data.on_bad_row)


def _answer(row: dict[str, Any], cfg: Questions) -> tuple[str, str | None]:
    """Returns answer and worked solution of a row without options; "" for a row without answer.

    Beside the schemas of `answer_and_solution`, a column `ground_truth`, or a short `solution` as
    in TRL's data sets, is the answer. Raises RowError for a row that needs an answer and has none.
    """
    try:
        return answer_and_solution(row, cfg)
    except RowError:
        known = row.get("reward_model") is not None or row.get("answer") is not None
        for name in () if cfg.answer or known else ("ground_truth", "solution"):
            value = row.get(name)
            if value is not None and not (isinstance(value, str) and len(value) > SHORT):
                return answer_field(row, name), None
        rewards = cfg.all_rewards()
        if not own_functions.is_named(cfg.grader) and (not rewards or "grader" in rewards):
            raise
        worked = row.get("solution")
        return "", worked if isinstance(worked, str) and worked.strip() else None


def _reads(rule: str, answer: str) -> bool:
    """Returns whether a rule can find any completion right that states this answer."""
    try:
        if rule == "number":
            return number.canonical(answer) is not None
        if rule == "choice":
            return re.fullmatch(r"\s*[A-Za-z]\s*", answer) is not None
        if rule == "choice_reference":
            return re.fullmatch("[A-Z]", answer) is not None
        if rule == "expression":
            return expression.FORM.fullmatch(answer) is not None
        if rule.startswith("tooluse"):
            tool_calls.expected_calls(answer)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _instruction(cfg: Questions, row: dict[str, Any], kind: str) -> str:
    """Returns the text that follows the question of a row."""
    if cfg.instruction is not None:
        return cfg.instruction
    names = (cfg.question,) if cfg.question else QUESTIONS
    asked = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(asked, list) or kind == NO_ANSWER:
        return ""
    rule = cfg.grader or ("choice" if kind == OPTIONS else "math")
    if rule.startswith("choice"):
        return CHOOSE
    return INSTRUCTION if rule.startswith("math") else ""


def _grader(cfg: Questions, kinds: dict[str, str], examples: Sequence[Example]) -> Grader:
    """Returns the grader that the config names, or that the rows need."""
    if own_functions.is_named(cfg.grader):
        return own_or_rule(cfg, cfg.grader)
    if len(kinds) > 1 and (NO_ANSWER in kinds or not cfg.grader):
        found = ", ".join(f"{place} {kind}" for kind, place in kinds.items())
        raise UserError(f"{found}: rows of one task must be alike: give each kind its own task")
    if NO_ANSWER in kinds:
        rule = cfg.grader
        config.require(not rule, "task.grader", rule, "the rows have no answers: leave it out")
        return ungraded
    if cfg.grader:
        return own_or_rule(cfg, cfg.grader)
    if OPTIONS in kinds:
        return own_or_rule(cfg, "choice")
    boxed = any("\\boxed" in m["content"] for e in examples for m in e.messages)
    numbers = all(number.is_plain(example.answer) for example in examples)
    return own_or_rule(cfg, "number" if numbers and not boxed else "math")
