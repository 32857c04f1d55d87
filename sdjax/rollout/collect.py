"""Examples in, groups out: encode, sample, decode, grade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from sdjax.config import Sampling
from sdjax.records import Completion, Example, Grade, Group
from sdjax.rollout.interface import Sampler
from sdjax.rollout.sampler import Sampled
from sdjax.tokenizer import Tokenizer

# Texts, their examples and whether each was cut off, in; their grades, out.
GradeMany = Callable[[Sequence[str], Sequence[Example], Sequence[bool]], list[Grade]]


def collect(
    sampler: Sampler,
    weights: Any,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    grade_many: GradeMany,
    *,
    group_size: int,
    sampling: Sampling,
    enable_thinking: bool | None,
    key: jax.Array,
) -> list[Group]:
    """Returns a graded group of completions for each example, in their order."""
    prompts = [
        tokenizer.encode_prompt(e.messages, enable_thinking=enable_thinking) for e in examples
    ]
    sampled = sampler.sample(weights, prompts, group_size=group_size, sampling=sampling, key=key)
    completions = [_completion(member, tokenizer) for members in sampled for member in members]
    grades = grade_many(
        [c.text for c in completions],
        [example for example in examples for _ in range(group_size)],
        [c.finish == "length" for c in completions],
    )
    return [
        Group(
            example=example,
            prompt=prompt,
            completions=tuple(completions[start : start + group_size]),
            grades=tuple(grades[start : start + group_size]),
        )
        for example, prompt, start in zip(
            examples, prompts, range(0, len(completions), group_size), strict=True
        )
    ]


def _completion(sampled: Sampled, tokenizer: Tokenizer) -> Completion:
    return Completion(
        tokens=sampled.tokens,
        logprobs=sampled.logprobs,
        text=tokenizer.decode(sampled.tokens),
        finish=sampled.finish,
    )
