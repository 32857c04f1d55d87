"""Any data set of reasoning-gym by its name: chain_sum, products, gcd, countdown and others."""

from __future__ import annotations

import time
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
# The least size given to a generator, and what one that has run out grows by. Some generators lay
# out all their questions at once, so the size must not be far beyond what the task needs.
LEAST_SIZE, GROWTH = 1000, 4
# Questions that one call to the generator returns, at most.
CHUNK = 100
# Questions whose answers the generator's rule must grade right before it may grade a model.
CHECKED = 8
# The longest that generating may take, in seconds.
LONGEST_S = 3600.0


@dataclass(frozen=True)
class _Generated:
    """The questions of a config, and the size of the generator that their ids refer to."""

    train: list[Example]
    held_out: list[Example]
    size: int


# The questions of the last config that was loaded, by the config's text.
_loaded: dict[str, _Generated] = {}


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
        generated = _generate(cfg)
        _loaded.clear()
        _loaded[repr(cfg)] = generated
    generated = _loaded[repr(cfg)]
    rule = grader("reasoning_gym", name=cfg.name, options=_options(cfg, generated.size))
    return Task(
        name=cfg.name,
        train=list(generated.train),
        held_out=list(generated.held_out),
        grader=rule,
    )


def _options(cfg: Arithmetic, size: int) -> dict[str, Option]:
    return dict(cfg.options) | {"seed": cfg.seed, "size": size}


class _Items:
    """Iterates over the (index, question, answer) of a generator until it runs out.

    `size` is that of the generator. It grows when the items reach it, if the generator keeps its
    earlier items then.
    """

    def __init__(self, cfg: Arithmetic) -> None:
        self._cfg = cfg
        self.size = max(LEAST_SIZE, 2 * (cfg.size + cfg.held_out))

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        # Questions must not depend on what the workers did before.
        reasoning_gym_rule.workers().renew()
        first, start, spent = self._read(0, CHECKED), 0, 0.0
        self._check(first)
        items = first
        while items:
            for offset, (question, answer) in enumerate(items):
                yield start + offset, question, answer
            start += len(items)
            began = time.monotonic()
            items = self._read(start)
            if not items and self._grows(first):
                items = self._read(start)
            spent += time.monotonic() - began
            self._check_speed(start + len(items) - len(first), spent)

    def _read(self, start: int, most: int = CHUNK) -> list[tuple[str, str]]:
        """Returns the next (question, answer), none if the generator has run out."""
        count = max(min(most, self.size - start), 0)
        options = _options(self._cfg, self.size)
        items = reasoning_gym_rule.questions(self._cfg.name, options, start, count)
        if isinstance(items, Lost):
            reason = {"late": "took too long", "died": "ended its process"}.get(items.reason)
            raise UserError(
                f"task.name is {self._cfg.name!r}: it {reason or 'failed'} after {start} questions "
                f"with task.options {self._cfg.options!r}; ask for easier ones or lower task.size"
            )
        if isinstance(items, str):
            raise UserError(items)
        return items

    def _grows(self, first: list[tuple[str, str]]) -> bool:
        """Makes the generator larger; returns whether it could."""
        before, self.size = self.size, self.size * GROWTH
        try:
            kept = self._read(0, len(first)) == first
        except UserError:
            kept = False
        if not kept:
            self.size = before
        return kept

    def _check(self, first: list[tuple[str, str]]) -> None:
        """Raises UserError if the generator's own rule cannot judge a model."""
        name, options = self._cfg.name, _options(self._cfg, self.size)
        rows = [(index, *item) for index, item in enumerate(first)]
        fault = reasoning_gym_rule.fault(name, options, rows)
        if fault is not None:
            raise UserError(
                f"task.name is {name!r}: the rule of reasoning-gym "
                f"{reasoning_gym_rule.version()} {fault}; choose another data set"
            )

    def _check_speed(self, number: int, seconds: float) -> None:
        """Raises UserError if the questions will take longer than LONGEST_S."""
        wanted = self._cfg.size + self._cfg.held_out
        if number and seconds / number * wanted > LONGEST_S:
            raise UserError(
                f"task.size is {self._cfg.size}: {self._cfg.name} takes {seconds / number:.1f} s "
                f"for a question, so {wanted} would take more than {LONGEST_S / 3600:g} h; lower "
                "task.size and task.held_out, or ask for easier ones in task.options"
            )


def _generate(cfg: Arithmetic) -> _Generated:
    """Returns distinct training and held-out examples, in the generator's order."""
    train: list[Example] = []
    held_out: list[Example] = []
    seen: set[str] = set()
    fruitless = 0
    items = _Items(cfg)
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
    return _Generated(train=train, held_out=held_out, size=items.size)


def _example(cfg: Arithmetic, index: int, question: str, answer: str) -> Example:
    prompt = question + (f"\n{cfg.instruction}" if cfg.instruction else "")
    system: list[Message] = [{"role": "system", "content": cfg.system}] if cfg.system else []
    return Example(
        id=str(index),
        messages=(*system, {"role": "user", "content": prompt}),
        answer=answer,
        task=cfg.name,
    )
