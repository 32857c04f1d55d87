"""Examples in, groups out: encode, sample, decode, grade; grading while others are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from sdjax.config import Sampling
from sdjax.records import Completion, Example, Grade, Group
from sdjax.rollout.interface import Sampled, Sampler
from sdjax.tokenizer import Tokenizer

# Texts, their examples and whether each was cut off, in; their grades, out.
GradeMany = Callable[[Sequence[str], Sequence[Example], Sequence[bool]], list[Grade]]
Graded = tuple[Completion, Grade]


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
    """Returns a graded group of completions for each example, in their order.

    `grade_many` is called from another thread, one call at a time, with whatever has ended.
    """
    prompts = [
        tokenizer.encode_prompt(e.messages, enable_thinking=enable_thinking) for e in examples
    ]
    run = sampler.stream(weights, prompts, group_size=group_size, sampling=sampling, key=key)
    ended: SimpleQueue[tuple[int, Sampled] | None] = SimpleQueue()

    def grade_ended() -> dict[int, Graded]:
        graded: dict[int, Graded] = {}
        while batch := _take(ended):
            completions = [_completion(sampled, tokenizer) for _, sampled in batch]
            grades = grade_many(
                [c.text for c in completions],
                [examples[i // group_size] for i, _ in batch],
                [c.finish == "length" for c in completions],
            )
            indices = [i for i, _ in batch]
            graded |= zip(indices, zip(completions, grades, strict=True), strict=True)
        return graded

    with ThreadPoolExecutor(1) as background:
        future = background.submit(grade_ended)
        try:
            for item in run:
                ended.put(item)
                if future.done():
                    break  # It has failed: it waits for more.
        finally:
            ended.put(None)
        graded = future.result()
    return [
        _group(example, prompt, [graded[i * group_size + g] for g in range(group_size)])
        for i, (example, prompt) in enumerate(zip(examples, prompts, strict=True))
    ]


def _take(
    ended: SimpleQueue[tuple[int, Sampled] | None],
) -> list[tuple[int, Sampled]]:
    """Waits, and returns all that is there; nothing after the None that ends the queue.

    All, because graders are quicker at many than at one by one.
    """
    taken: list[tuple[int, Sampled]] = []
    while not (taken and ended.empty()):
        item = ended.get()
        if item is None:
            ended.put(None)
            break
        taken.append(item)
    return taken


def _completion(sampled: Sampled, tokenizer: Tokenizer) -> Completion:
    return Completion(
        tokens=sampled.tokens,
        logprobs=sampled.logprobs,
        text=tokenizer.decode(sampled.tokens),
        finish=sampled.finish,
    )


def _group(example: Example, prompt: np.ndarray, graded: Sequence[Graded]) -> Group:
    completions, grades = zip(*graded, strict=True)
    return Group(example=example, prompt=prompt, completions=completions, grades=grades)
