"""Any reasoning-gym data set by its name: chain_sum, products, gcd, countdown and the others."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders.answer import number
from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.graders.workers.pool import Lost, Pool
from sdjax.records import Example, Grade, Message
from sdjax.tasks import Task
from sdjax.tasks.split import is_held_out

Option = int | float | str | bool

# A generator that shows nothing new this many times in a row has run out of questions.
PATIENCE = 2000
# Of every generator: item i depends on the seed and i alone.
SIZE = 2**40
MAX_ANSWER = 10_000
# Questions asked of the generator at a time, and how long they may take.
CHUNK, CHUNK_S = 100, 60.0
# The questions of the config loaded last, by what it says.
_made: dict[str, tuple[list[Example], list[Example]]] = {}


@dataclass(frozen=True, kw_only=True)
class Arithmetic(config.TaskConfig):
    """Questions of a reasoning-gym generator, graded by number or by the generator's own rule."""

    name: str = "chain_sum"
    """A data set of reasoning-gym."""
    options: dict[str, Option] = field(default_factory=dict)
    """The generator's own options, such as min_terms, max_terms, min_digits, max_digits."""
    size: int = 5000
    """Distinct training questions, at most; an easy generator runs out earlier."""
    system: str = ""
    """System prompt; empty sends none."""
    instruction: str = ""
    """Appended to every question."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(self.size >= 1, "task.size", self.size, "must be at least 1")
        for name in ("seed", "size"):
            config.require(
                name not in self.options, "task.options", self.options, f"set task.{name} instead"
            )


def load(cfg: Arithmetic, data: config.Data) -> Task:
    """Returns the task; `data` is not used, for nothing is read from files."""
    del data
    # A sweep loads its task for every training, which starts a process and asks thousands of times.
    if repr(cfg) not in _made:
        _made.clear()
        _made[repr(cfg)] = _questions(cfg)
    train, held_out = map(list, _made[repr(cfg)])
    return Task(name=cfg.name, train=train, held_out=held_out, grader=_grader(cfg))


def _generator_options(cfg: Arithmetic) -> str:
    return json.dumps(dict(cfg.options) | {"seed": cfg.seed, "size": SIZE})


def _items(cfg: Arithmetic) -> Generator[tuple[int, str, str], None, None]:
    """Yields (index, question, answer) of a generator, without end."""
    options = _generator_options(cfg)
    pool = Pool("sdjax.graders.reasoning_gym_rule:questions", workers=1, limit_s=CHUNK_S)
    try:
        for start in itertools.count(0, CHUNK):
            (items,) = pool.map([(cfg.name, options, start, CHUNK)])
            if isinstance(items, Lost):
                raise UserError(
                    f"task.options is {cfg.options!r}: {cfg.name} makes no questions "
                    f"({items.reason} after {start}); ask for easier ones"
                )
            if isinstance(items, str):
                raise UserError(items)
            for offset, (question, answer) in enumerate(items):
                yield start + offset, question, answer
    finally:
        pool.close()


def _questions(cfg: Arithmetic) -> tuple[list[Example], list[Example]]:
    """Returns distinct training and held-out examples, in the generator's order."""
    train: list[Example] = []
    held_out: list[Example] = []
    seen: set[str] = set()
    fruitless = 0
    with contextlib.closing(_items(cfg)) as items:
        for index, question, answer in items:
            side, wanted = (held_out, cfg.held_out) if is_held_out(question) else (train, cfg.size)
            fruitless += 1
            if question not in seen and len(side) < wanted:
                seen.add(question)
                side.append(_example(cfg, index, question, answer))
                fruitless = 0
            full = len(train) == cfg.size and len(held_out) == cfg.held_out
            if full or fruitless == PATIENCE:
                break
    if len(held_out) < cfg.held_out or not train:
        raise UserError(
            f"task.held_out is {cfg.held_out}: {cfg.name} with options {cfg.options!r} has only "
            f"{len(held_out)} distinct held-out and {len(train)} training questions; lower it or "
            "widen task.options"
        )
    return train, held_out


def _example(cfg: Arithmetic, index: int, question: str, answer: str) -> Example:
    prompt = question + (f"\n{cfg.instruction}" if cfg.instruction else "")
    system: list[Message] = [{"role": "system", "content": cfg.system}] if cfg.system else []
    return Example(
        id=str(index),
        messages=(*system, {"role": "user", "content": prompt}),
        answer=answer,
        task=cfg.name,
    )


def _grader(cfg: Arithmetic) -> Grader:
    options = _generator_options(cfg)
    pool = Pool("sdjax.graders.reasoning_gym_rule:full_score")

    def grade_all(attempts: Sequence[Attempt]) -> list[Grade]:
        stated = [_stated(attempt) for attempt in attempts]
        calls = [
            (cfg.name, options, int(attempt.id), answer)
            for attempt, answer in zip(attempts, stated, strict=True)
            if answer is not None
        ]
        scores = iter(pool.map(calls))
        return [
            number.grade(attempt.text, attempt.answer, truncated=attempt.truncated)
            if number.canonical(attempt.answer) is not None
            else _grade(attempt, answer, answer is not None and next(scores) is True)
            for attempt, answer in zip(attempts, stated, strict=True)
        ]

    return grade_all


def _stated(attempt: Attempt) -> str | None:
    """Returns the answer that goes to the generator's own rule, None if there is none.

    It is what the last <answer> or box holds, else all that follows the thinking.
    """
    if number.canonical(attempt.answer) is not None:
        return None
    stated = stated_answer(attempt.text)
    if stated is None and not attempt.truncated:
        stated = after_thinking(attempt.text).strip()
    return None if stated is None or len(stated) > MAX_ANSWER else stated


def _grade(attempt: Attempt, answer: str | None, correct: bool) -> Grade:
    """Partial credit is left out: several generators give it to any text that holds the answer."""
    return Grade(
        reward=float(correct),
        correct=correct,
        details={"prediction": answer, "truncated": attempt.truncated},
    )
