"""Examples in, groups out: encode, sample, decode, grade; grading while others are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from sdjax.config import Sampling
from sdjax.parallel import hosts
from sdjax.records import Completion, Example, Grade, Group
from sdjax.rollout.interface import Sampled, Sampler
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
    prompts: Sequence[np.ndarray] | None = None,
) -> list[Group]:
    """Returns a graded group of completions for each example, in their order.

    `prompts`, int32[P_i] each, are read in place of the examples' own.
    `grade_many` is called from another thread, one call at a time, with whatever has ended; with
    several processes each grades its share.
    """
    if prompts is None:
        prompts = [
            tokenizer.encode_prompt(e.messages, enable_thinking=enable_thinking) for e in examples
        ]
    run = sampler.stream(weights, prompts, group_size=group_size, sampling=sampling, key=key)
    ended: SimpleQueue[tuple[int, Sampled] | None] = SimpleQueue()

    def grade_ended() -> tuple[dict[int, Completion], dict[int, Grade]]:
        completions: dict[int, Completion] = {}
        grades: dict[int, Grade] = {}
        while batch := _take(ended):
            completions |= {i: _completion(sampled, tokenizer) for i, sampled in batch}
            own = [i for i, _ in batch if i % jax.process_count() == jax.process_index()]
            if own:
                new = grade_many(
                    [completions[i].text for i in own],
                    [examples[i // group_size] for i in own],
                    [completions[i].finish == "length" for i in own],
                )
                grades |= zip(own, new, strict=True)
        return completions, grades

    with ThreadPoolExecutor(1) as background:
        future = background.submit(grade_ended)
        try:
            for item in run:
                ended.put(item)
                if future.done():
                    break  # It has failed: it waits for more.
        finally:
            ended.put(None)
        completions, grades = future.result()
    grades = _of_all_processes(grades)
    return [
        Group(
            example=example,
            prompt=prompt,
            completions=tuple(completions[i] for i in range(first, first + group_size)),
            grades=tuple(grades[i] for i in range(first, first + group_size)),
        )
        for first, example, prompt in zip(
            range(0, len(examples) * group_size, group_size), examples, prompts, strict=True
        )
    ]


def _of_all_processes(grades: dict[int, Grade]) -> dict[int, Grade]:
    """Returns all grades; each process has made its share.

    So every one has the same, also of a grader whose time limit one host exceeds and another not.
    """
    if jax.process_count() == 1:
        return grades
    shares = hosts.gathered([[i, asdict(grade)] for i, grade in grades.items()])
    return {i: Grade(**fields) for share in shares for i, fields in share}


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
