"""The lines of rollouts.jsonl: one per completion; some of them have every token.

With every token, a step of 2048 completions of 20,480 tokens would be gigabytes. Therefore
`log.rollouts_per_step` completions have every token, and the others have text and grade. Another
thread makes the lines while the next step runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax import config
from sdjax.learner import batch as batches
from sdjax.learner.alternatives import Alternatives, Likeliest, Scored
from sdjax.learner.batch import Batch
from sdjax.learner.objective import TokenRecord
from sdjax.logs.terminal import ShownCompletion
from sdjax.records import Completion, Group, TeacherPrompt
from sdjax.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What the lines of a step are made of, on the host."""

    groups: Sequence[Group]
    reprompts: Sequence[Sequence[TeacherPrompt]] | None
    epistemic: Sequence[np.ndarray]
    """For each completion, which of its tokens belong to an epistemic word, bool[T_i]."""
    full: Sequence[int]
    """Completions whose lines have everything."""
    updates: Sequence[Batch]
    """As packed on the host."""
    reported: Sequence[TokenRecord]
    """What each update reports of its tokens."""
    alternatives: Scored | None


def choose(groups: Sequence[Group], log: config.Log, *, seed: int, step: int) -> list[int]:
    """Returns the completions whose lines have everything, correct and wrong ones in turn.

    Seed and step determine them, so a resumed run chooses the same.
    """
    if not log.rollouts:
        return []
    correct = np.array([grade.correct for g in groups for grade in g.grades])
    shuffled = np.random.default_rng([seed, step]).permutation(len(correct)).tolist()
    right, wrong = ([i for i in shuffled if correct[i] == kind] for kind in (True, False))
    turns = [i for pair in itertools.zip_longest(right, wrong) for i in pair if i is not None]
    return turns[: log.rollouts_per_step] if log.rollouts_per_step else turns


def shown(groups: Sequence[Group]) -> list[ShownCompletion]:
    """Returns a right and a wrong completion, of one question if a group has both; or only one."""
    graded = [
        (grade.correct, g, i)
        for g, group in enumerate(groups)
        for i, grade in enumerate(group.grades)
    ]
    kinds = [[(g, i) for correct, g, i in graded if correct is kind] for kind in (True, False)]
    both = {g for g, _ in kinds[0]} & {g for g, _ in kinds[1]}
    chosen = [
        next((place for place in of_kind if place[0] == min(both, default=-1)), of_kind[0])
        for of_kind in kinds
        if of_kind
    ]
    return [_shown(groups[g], i) for g, i in chosen]


def _shown(group: Group, index: int) -> ShownCompletion:
    completion, grade = group.completions[index], group.grades[index]
    return ShownCompletion(
        id=group.example.id,
        question=group.example.messages[-1]["content"],
        text=completion.text,
        tokens=len(completion.tokens),
        cut_off=completion.finish == "length",
        reward=grade.reward,
        correct=grade.correct,
    )


def lines(step: StepRecord, tokenizer: Tokenizer, log: config.Log) -> Iterator[dict[str, Any]]:
    """Yields the lines in the order of the completions."""
    full = set(step.full)
    likeliest = step.alternatives.by_completion() if step.alternatives else {}
    # For each completion, its place in an update's arrays and what that update reports.
    reported = [
        (int(place), record)
        for packed, record in zip(step.updates, step.reported, strict=True)
        for place in batches.places(packed)
    ]
    number = 0
    for g, group in enumerate(step.groups):
        prompt = tokenizer.decode_raw(group.prompt)
        for i, (completion, grade) in enumerate(zip(group.completions, group.grades, strict=True)):
            line = {
                "id": group.example.id,
                "prompt": prompt,
                "completion": completion.text,
                "length": len(completion.tokens),
                "finish": completion.finish,
                "answer": group.example.answer,
                "reward": grade.reward,
                "correct": grade.correct,
                "feedback": grade.feedback,
                "details": grade.details,
            }
            if number in full:
                line |= _every_token(
                    completion, step.epistemic[number], *reported[number], tokenizer
                )
                if step.reprompts is not None:
                    seen = step.reprompts[g][i]
                    line |= {
                        "reprompt": tokenizer.decode_raw(seen.tokens),
                        "demonstration": seen.demonstration,
                        "feedback_used": seen.feedback_used,
                        "distilled": seen.distilled,
                    }
                if number in likeliest:
                    line |= _alternatives(likeliest[number], tokenizer, log)
            yield line
            number += 1


def _every_token(
    completion: Completion,
    marked: np.ndarray,
    place: int,
    reported: TokenRecord,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Returns a list with an entry per token for each kind of figure.

    Args:
        completion: Its tokens and what the sampler says of them.
        marked: Which tokens belong to an epistemic word, bool[T_i].
        place: Where its first token stands in the arrays of the update. -1: the update left it
            out, and each figure of the update is None.
        reported: What the update reports of its tokens.
        tokenizer: Gives the text of each token.
    """
    fields: dict[str, Any] = {
        "tokens": completion.tokens.tolist(),
        "pieces": tokenizer.pieces(completion.tokens),
        "epistemic": np.flatnonzero(marked).tolist(),
        "sampler_logprobs": _rounded(completion.logprobs, 4),
    }
    for name, values, digits in (
        ("student_logprobs", reported.student_logprob, 4),
        ("student_entropy", reported.student_entropy, 3),
        ("teacher_logprobs", reported.teacher_logprob, 4),
        ("teacher_entropy", reported.teacher_entropy, 3),
    ):
        if values is not None:
            own = np.asarray(values).reshape(-1)[place : place + len(completion.tokens)]
            fields[name] = None if place < 0 else _rounded(own, digits)
    return fields


def _alternatives(found: Alternatives, tokenizer: Tokenizer, log: config.Log) -> dict[str, Any]:
    """Returns [text, log-probability] of the likeliest tokens at each place of a completion.

    Places after the first `log.alternatives_tokens` have none.
    """

    def pairs(likeliest: Likeliest) -> list[list]:
        first, total = log.alternatives_tokens, len(likeliest.token)
        tokens = np.asarray(likeliest.token)[:first]
        logprobs = _rounded(likeliest.logprob[:first], 3)
        with_text = [
            [[text, p] for text, p in zip(tokenizer.token_texts(t), ps, strict=True)]
            for t, ps in zip(tokens, logprobs, strict=True)
        ]
        return with_text + [[]] * (total - len(with_text))

    fields = {"student_top": pairs(found.student)}
    return fields if found.teacher is None else fields | {"teacher_top": pairs(found.teacher)}


def _rounded(values: Any, digits: int) -> list:
    """Returns rounded float64 numbers, because a rounded float32 prints with all its digits."""
    return np.round(np.asarray(values, np.float64), digits).tolist()
