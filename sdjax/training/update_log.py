"""What rollouts.jsonl keeps of a step: a line for each completion, some with every token.

A step of 2048 completions of 20,480 tokens would be gigabytes with everything, so
`log.rollouts_per_step` of them have it and the others text and grade. It runs beside the next
step.
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
from sdjax.records import Completion, Grade, Group, TeacherPrompt
from sdjax.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What a step leaves on the host for its lines."""

    groups: Sequence[Group]
    reprompts: Sequence[Sequence[TeacherPrompt]] | None
    epistemic: Sequence[np.ndarray]
    """bool[T_i] for each completion."""
    full: Sequence[int]
    """Completions whose lines have everything."""
    updates: Sequence[Batch]
    """As packed on the host."""
    reported: Sequence[TokenRecord]
    """Of each update, on the host."""
    alternatives: Scored | None


def choose(groups: Sequence[Group], log: config.Log, *, seed: int, step: int) -> list[int]:
    """Returns the completions of which everything is kept, correct and wrong ones in turn.

    They are drawn by seed and step, so a resumed run chooses the same.
    """
    if not log.rollouts:
        return []
    correct = np.array([grade.correct for g in groups for grade in g.grades])
    drawn = np.random.default_rng([seed, step]).permutation(len(correct)).tolist()
    right, wrong = ([i for i in drawn if correct[i] == kind] for kind in (True, False))
    turns = [i for pair in itertools.zip_longest(right, wrong) for i in pair if i is not None]
    return turns[: log.rollouts_per_step] if log.rollouts_per_step else turns


def lines(step: StepRecord, tokenizer: Tokenizer, log: config.Log) -> Iterator[dict[str, Any]]:
    """Yields the lines in the order of the completions."""
    full = set(step.full)
    known = _Known(step)
    few = step.alternatives.by_completion() if step.alternatives else {}
    row = 0
    for g, group in enumerate(step.groups):
        prompt = tokenizer.decode_raw(group.prompt)
        for i, (completion, grade) in enumerate(zip(group.completions, group.grades, strict=True)):
            line = _text(group, prompt, completion, grade)
            if row in full:
                line |= _tokens(completion, step.epistemic[row], tokenizer) | known.of(row)
                if step.reprompts is not None:
                    line |= _reprompt(step.reprompts[g][i], tokenizer)
                if row in few:
                    line |= _alternatives(few[row], tokenizer, log)
            yield line
            row += 1


def _text(group: Group, prompt: str, completion: Completion, grade: Grade) -> dict[str, Any]:
    return {
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


def _tokens(completion: Completion, marked: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokens": completion.tokens,
        "pieces": tokenizer.pieces(completion.tokens),
        "epistemic": np.flatnonzero(marked),
        "sampler_logprobs": _rounded(completion.logprobs, 4),
    }


def _reprompt(seen: TeacherPrompt, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "reprompt": tokenizer.decode_raw(seen.tokens),
        "demonstration": seen.demonstration,
        "feedback_used": seen.feedback_used,
        "distilled": seen.distilled,
    }


class _Known:
    """What the updates report of a completion's tokens, by completion of the step."""

    def __init__(self, step: StepRecord) -> None:
        self._step = step
        self._places = [batches.places(update) for update in step.updates]

    def of(self, row: int) -> dict[str, Any]:
        """Returns lists of numbers; None for a completion that the update had no use for."""
        part = 0
        while row >= len(self._places[part]):
            row -= len(self._places[part])
            part += 1
        place, length = self._places[part][row], self._step.updates[part].samples.length[row]
        reported = self._step.reported[part]
        out = {}
        for name, values, digits in (
            ("student_logprobs", reported.student_logprob, 4),
            ("student_entropy", reported.student_entropy, 3),
            ("teacher_logprobs", reported.teacher_logprob, 4),
            ("teacher_entropy", reported.teacher_entropy, 3),
        ):
            if values is not None:
                own = np.asarray(values).reshape(-1)[place : place + length]
                out[name] = None if place < 0 else _rounded(own, digits)
        return out


def _alternatives(found: Alternatives, tokenizer: Tokenizer, log: config.Log) -> dict[str, Any]:
    def pairs(likeliest: Likeliest) -> list[list]:
        token, logprob = np.asarray(likeliest.token), _rounded(likeliest.logprob, 3)
        first = log.alternatives_tokens
        out = [
            [[text, p] for text, p in zip(tokenizer.token_texts(t), ps, strict=True)]
            for t, ps in zip(token[:first], logprob[:first].tolist(), strict=True)
        ]
        return out + [[]] * (len(token) - len(out))

    out = {"student_top": pairs(found.student)}
    return out if found.teacher is None else out | {"teacher_top": pairs(found.teacher)}


def _rounded(values: Any, digits: int) -> np.ndarray:
    """Returns float64: a rounded float32 has as many digits in text as one that is not."""
    return np.round(np.asarray(values, np.float64), digits)
