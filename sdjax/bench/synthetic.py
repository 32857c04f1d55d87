"""Draws random prompts, completions, grades and reprompts of given lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sdjax.config import Bench
from sdjax.records import Completion, Example, Grade, Group, Sampled, TeacherPrompt


def prompts(cfg: Bench, number: int, vocab: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns `number` prompts int32[prompt_tokens]."""
    return [_tokens(cfg.prompt_tokens, vocab, rng) for _ in range(number)]


def completions(
    cfg: Bench, number: int, vocab: int, rng: np.random.Generator
) -> list[list[Sampled]]:
    """Returns `number` groups of random completions, all tokens equally likely."""
    n = cfg.completion_tokens
    chance = np.full(n, -math.log(vocab), np.float32)

    def one() -> Sampled:
        return Sampled(tokens=_tokens(n, vocab, rng), logprobs=chance, finish="length")

    return [[one() for _ in range(cfg.group_size)] for _ in range(number)]


def groups(prompts: Sequence[np.ndarray], sampled: Sequence[Sequence[Sampled]]) -> list[Group]:
    """Returns graded groups in which every second completion is correct.

    So every completion has an advantage that is not zero.
    """
    return [
        Group(
            example=Example(id=str(i), messages=(), answer="", task="bench"),
            prompt=prompt,
            completions=tuple(
                Completion(tokens=m.tokens, logprobs=m.logprobs, text="", finish=m.finish)
                for m in members
            ),
            grades=tuple(
                Grade(reward=float(g % 2), correct=g % 2 == 1) for g, _ in enumerate(members)
            ),
        )
        for i, (prompt, members) in enumerate(zip(prompts, sampled, strict=True))
    ]


def reprompts(
    cfg: Bench, groups: Sequence[Group], vocab: int, rng: np.random.Generator
) -> list[list[TeacherPrompt]]:
    """Returns a reprompt of reprompt_tokens per completion; all completions are distilled."""
    return [
        [
            TeacherPrompt(
                tokens=_tokens(cfg.reprompt_tokens, vocab, rng),
                demonstration=1,
                feedback_used=False,
            )
            for _ in group.completions
        ]
        for group in groups
    ]


def lengths(cfg: Bench, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns int64[number] lognormal lengths, clipped to 1 ... completion_tokens."""
    median = cfg.median_share * cfg.completion_tokens
    drawn = np.rint(median * np.exp(cfg.spread * rng.standard_normal(number)))
    return np.clip(drawn, 1, cfg.completion_tokens).astype(np.int64)


def _tokens(n: int, vocab: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, vocab, n).astype(np.int32)
