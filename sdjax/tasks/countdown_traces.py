"""Writes the conversations from which a base model for Countdown is trained.

There are two kinds. An unguided conversation holds a question and a search that expresses doubt
and finds the solution or gives up. A guided conversation also shows a correct solution, in the
words in which a teacher reads it, and its answer uses that solution. It teaches the base model to
read a demonstration, which an instruct model learns from far more text. The answer depends on what
is shown:

- a whole trace: the answer is mostly direct. A false start ends soon, with few words of doubt.
- the answer alone: the answer is a search, which ends sooner than an unguided one.
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
    trace,
)

# A guided answer turns to the shown solution after at most this many failures.
MOST_FAILURES = 10


@dataclass(frozen=True)
class TraceRow:
    """A question, the solution that is shown with it (None if none is), and the answer."""

    question: str
    shown: str | None
    answer: str


def trace_row(task: Countdown, cfg: config.Traces, rng: Random) -> TraceRow:
    """Returns a conversation about a question that the task neither trains on nor holds out."""
    question = draw(task, "base", rng)
    if rng.random() >= cfg.guided:
        return TraceRow(question.text(), None, _unguided(question, cfg, rng))
    found = search(question.numbers, question.target, cfg.patience[1], Voice(cfg.doubt), rng)
    kind, path = rng.random(), found.path
    if not found.solved:
        path = rng.choice(list(solutions(terms(question.numbers), question.target)))
    if kind < cfg.shown_answer:
        answer = _guided(question, path, Voice(cfg.doubt), cfg.answer_hazard, rng)
        return TraceRow(question.text(), stated(path), answer)
    whole = found.solved and kind >= cfg.shown_answer + cfg.shown_direct
    shown = trace(found.lines, path) if whole else direct(path)
    answer = _guided(question, path, Voice(cfg.guided_doubt), cfg.trace_hazard, rng)
    return TraceRow(question.text(), shown, answer)


def _unguided(question: Question, cfg: config.Traces, rng: Random) -> str:
    """Returns a search. If it fails, its answer is the last expression that it tried."""
    patience = rng.randint(*cfg.patience)
    found = search(question.numbers, question.target, patience, Voice(cfg.doubt), rng)
    lines = found.lines if found.solved else (*found.lines, rng.choice(GIVE_UP))
    return trace(lines, found.path)


def _guided(
    question: Question, path: Sequence[Step], voice: Voice, hazard: float, rng: Random
) -> str:
    """Returns an answer that follows `path` after some failures, unless it finds a solution."""
    failures = 0
    while failures < MOST_FAILURES and rng.random() >= hazard:
        failures += 1
    if failures == 0:
        return direct(path)
    start = search(question.numbers, question.target, failures, voice, rng)
    if start.solved:
        return trace(start.lines, start.path)
    check = voice.found([step.line for step in path], rng)
    return trace((*start.lines, *direct_lines(path), check), path)
