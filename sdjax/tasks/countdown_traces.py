"""Conversations from which a base model for Countdown is trained, made by a program.

Of two kinds. Unguided: the question, and a search that puts doubt into words, whether it finds the
solution or gives up. Guided: the question with a correct solution shown, in the words in which a
teacher reads it, and an answer that makes use of it. So it is taught here that a demonstration can
be read and how, where an instruct model has it from far more text:

shown a whole trace     the answer is mostly direct; a false start ends soon, with few words of
                        doubt
shown the answer alone  it is thought over: a search that ends sooner than it would unguided
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sdjax import config
from sdjax.tasks.countdown import Countdown, Question, draw
from sdjax.tasks.countdown_search import (
    GIVE_UP,
    Step,
    Voice,
    direct,
    direct_lines,
    search,
    solutions,
    stated,
    terms,
    told,
)

# Of an answer before it turns to the solution that it was shown.
MOST_FAILURES = 10


@dataclass(frozen=True)
class Told:
    """A question, the solution shown with it (None: none is), and what is answered."""

    question: str
    shown: str | None
    answer: str


def tell(task: Countdown, cfg: config.Traces, rng: Random) -> Told:
    """Returns a conversation about a question of the task, none that it trains on or holds out."""
    question = draw(task, "base", rng)
    if rng.random() >= cfg.guided:
        return Told(question.text(), None, _unguided(question, cfg, rng))
    found = search(question.numbers, question.target, cfg.patience[1], Voice(cfg.doubt), rng)
    kind, path = rng.random(), found.path
    if not found.solved:
        path = rng.choice(list(solutions(terms(question.numbers), question.target)))
    if kind < cfg.shown_answer:
        answer = _guided(question, path, Voice(cfg.doubt), cfg.answer_hazard, rng)
        return Told(question.text(), stated(path), answer)
    whole = found.solved and kind >= cfg.shown_answer + cfg.shown_direct
    shown = told(found.lines, path) if whole else direct(path)
    answer = _guided(question, path, Voice(cfg.guided_doubt), cfg.trace_hazard, rng)
    return Told(question.text(), shown, answer)


def _unguided(question: Question, cfg: config.Traces, rng: Random) -> str:
    """Returns a search that may fail: its answer is then the last expression tried."""
    patience = rng.randint(*cfg.patience)
    found = search(question.numbers, question.target, patience, Voice(cfg.doubt), rng)
    lines = found.lines if found.solved else (*found.lines, rng.choice(GIVE_UP))
    return told(lines, found.path)


def _guided(
    question: Question, path: Sequence[Step], voice: Voice, hazard: float, rng: Random
) -> str:
    """Returns an answer that turns to a known path after some failures, unless it finds one."""
    failures = 0
    while failures < MOST_FAILURES and rng.random() >= hazard:
        failures += 1
    if failures == 0:
        return direct(path)
    start = search(question.numbers, question.target, failures, voice, rng)
    if start.solved:
        return told(start.lines, start.path)
    check = voice.found([step.line for step in path], rng)
    return told((*start.lines, *direct_lines(path), check), path)
