"""Writes the conversations from which a base model for Countdown is trained.

There are two kinds. An unguided conversation holds a question and a search that expresses doubt
and finds the solution or gives up. A guided conversation also shows a correct solution, in the
words in which a teacher reads it, and its answer uses that solution. It teaches the base model to
read a demonstration, which an instruct model learns from far more text. The answer depends on what
is shown:

- a whole trace: the answer is mostly direct. A false start ends soon, with few words of doubt.
- the answer alone: the answer is a search, which ends sooner than an unguided one.

Two settings change what the base model learns of giving up. guided_gives_up makes guided answers
fail as often as the others. instructed adds questions with an instruction, whose search goes on
until it finds the solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sdjax import config
from sdjax.errors import UserError
from sdjax.tasks.countdown import Countdown, Question, draw
from sdjax.tasks.countdown_search import (
    GIVE_UP,
    Search,
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
# A question whose search is not to give up is searched at most this often.
MOST_SEARCHES = 1000


@dataclass(frozen=True)
class TraceRow:
    """A question, the solution that is shown with it (None if none is), and the answer.

    `instruction` is the text after the question; "" for none.
    """

    question: str
    shown: str | None
    answer: str
    instruction: str = ""


def trace_row(task: Countdown, cfg: config.Traces, rng: Random) -> TraceRow:
    """Returns a conversation about a question that the task neither trains on nor holds out."""
    question = draw(task, "base", rng)
    if rng.random() >= cfg.guided:
        if cfg.instructed > 0 and rng.random() < cfg.instructed:
            answer = _persistent(question, cfg, rng)
            return TraceRow(question.text(), None, answer, cfg.instruction)
        return TraceRow(question.text(), None, _unguided(question, cfg, rng))
    found = search(question.numbers, question.target, cfg.patience[1], Voice(cfg.doubt), rng)
    kind, path = rng.random(), found.path
    if not found.solved:
        path = rng.choice(list(solutions(terms(question.numbers), question.target)))
    if kind < cfg.shown_answer:
        shown, voice, hazard = stated(path), Voice(cfg.doubt), cfg.answer_hazard
    else:
        whole = found.solved and kind >= cfg.shown_answer + cfg.shown_direct
        shown = trace(found.lines, path) if whole else direct(path)
        voice, hazard = Voice(cfg.guided_doubt), cfg.trace_hazard
    answer = _guided(question, path, voice, hazard, rng)
    if cfg.guided_gives_up and not (tried := _tried(question, cfg, voice, rng)).solved:
        answer = _told(tried, rng)
    return TraceRow(question.text(), shown, answer)


def _unguided(question: Question, cfg: config.Traces, rng: Random) -> str:
    """Returns a search. If it fails, its answer is the last expression that it tried."""
    return _told(_tried(question, cfg, Voice(cfg.doubt), rng), rng)


def _persistent(question: Question, cfg: config.Traces, rng: Random) -> str:
    """Returns a search that finds the solution within the largest patience."""
    for _ in range(MOST_SEARCHES):
        found = search(question.numbers, question.target, cfg.patience[1], Voice(cfg.doubt), rng)
        if found.solved:
            return trace(found.lines, found.path)
    raise UserError(
        f"patience is {cfg.patience}: {MOST_SEARCHES} searches of a question found no solution; "
        "raise the second number, or set instructed 0"
    )


def _tried(question: Question, cfg: config.Traces, voice: Voice, rng: Random) -> Search:
    """Returns a search with a patience that is drawn."""
    return search(question.numbers, question.target, rng.randint(*cfg.patience), voice, rng)


def _told(found: Search, rng: Random) -> str:
    """Returns the text of a search, which gives up in words if it failed."""
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
