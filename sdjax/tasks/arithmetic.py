"""Any data set of reasoning-gym by its name: chain_sum, products, gcd, countdown and others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders import grader, reasoning_gym_rule
from sdjax.graders.workers.pool import Lost
from sdjax.records import Example, Message
from sdjax.tasks import Task, is_held_out

Option = int | float | str | bool

# A generator that gives no new question this many times in a row has run out of questions.
PATIENCE = 2000
# The size given to every generator. Item i depends only on the seed and i.
SIZE = 2**40
# Questions that one call to the generator returns.
CHUNK = 100
# The questions of the last config that was loaded, by the config's text.
_loaded: dict[str, tuple[list[Example], list[Example]]] = {}


@dataclass(frozen=True, kw_only=True)
class Arithmetic(config.TaskConfig):
    """Questions of a reasoning-gym generator, graded by number or by the generator's own rule."""

    name: str = "chain_sum"
    """A data set of reasoning-gym."""
    options: dict[str, Option] = field(default_factory=dict)
    """The generator's own options, such as min_terms, max_terms, min_digits, max_digits."""
    size: int = 5000
    """Distinct training questions, at most. An easy generator runs out earlier."""
    system: str = ""
    """System prompt. If empty, there is none."""
    instruction: str = ""
    """Follows every question on a new line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(self.size >= 1, "task.size", self.size, "must be at least 1")
        for name in ("seed", "size"):
            config.require(
                name not in self.options, "task.options", self.options, f"set task.{name} instead"
            )


def load(cfg: Arithmetic, data: config.Data) -> Task:
    """Returns the task. It reads no files, so it does not use `data`."""
    del data
    # A sweep loads its task for every training, and generating takes thousands of calls.
    if repr(cfg) not in _loaded:
        _loaded.clear()
        _loaded[repr(cfg)] = _questions(cfg)
    train, held_out = map(list, _loaded[repr(cfg)])
    rule = grader("reasoning_gym", name=cfg.name, options=_generator_options(cfg))
    return Task(name=cfg.name, train=train, held_out=held_out, grader=rule)


def _generator_options(cfg: Arithmetic) -> dict[str, Option]:
    return dict(cfg.options) | {"seed": cfg.seed, "size": SIZE}


def _items(cfg: Arithmetic) -> Iterator[tuple[int, str, str]]:
    """Yields (index, question, answer) of a generator, without end."""
    options = _generator_options(cfg)
    # Questions must not depend on what the workers did before.
    reasoning_gym_rule.workers().renew()
    for start in itertools.count(0, CHUNK):
        items = reasoning_gym_rule.questions(cfg.name, options, start, CHUNK)
        if isinstance(items, Lost):
            raise UserError(
                f"task.options is {cfg.options!r}: {cfg.name} makes no questions "
                f"({items.reason} after {start}); ask for easier ones"
            )
        if isinstance(items, str):
            raise UserError(items)
        for offset, (question, answer) in enumerate(items):
            yield start + offset, question, answer


def _questions(cfg: Arithmetic) -> tuple[list[Example], list[Example]]:
    """Returns distinct training and held-out examples, in the generator's order."""
    train: list[Example] = []
    held_out: list[Example] = []
    seen: set[str] = set()
    fruitless = 0
    for index, question, answer in _items(cfg):
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
