"""From prompts to graded groups: sample, decode and grade, while other completions are sampled.

`fill` repeats this where dynamic sampling is on: groups that teach nothing are replaced by groups
of further prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

import jax

from sdjax.parallel import hosts
from sdjax.records import Completion, Example, Grade, Group, Sampled
from sdjax.rollout.interface import Sampler, SamplingRequest
from sdjax.tokenizer import Tokenizer

# Takes texts, their examples, and whether each text was cut off; returns their grades.
GradeMany = Callable[[Sequence[str], Sequence[Example], Sequence[bool]], list[Grade]]


def collect(
    sampler: Sampler,
    weights: Any,
    request: SamplingRequest,
    *,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    grade_many: GradeMany,
) -> list[Group]:
    """Returns one graded group of completions per example, in the order of the examples.

    Args:
        sampler: Draws the completions.
        weights: What `sampler.weights` returned.
        request: The prompts, one per example, and how to draw from them.
        examples: What the grader compares the completions with.
        tokenizer: Decodes the completions.
        grade_many: The grader. A second thread calls it, one call at a time, with all completions
            that have ended since the last call. Each of several processes grades its share.
    """
    run = sampler.stream(weights, request)
    ended: SimpleQueue[tuple[int, Sampled] | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as background:
        future = background.submit(_grade, ended, request, examples, tokenizer, grade_many)
        try:
            for item in run:
                ended.put(item)
                if future.done():
                    break  # The grader failed: otherwise it waits for the end of the queue.
        finally:
            ended.put(None)
        completions, grades = future.result()
    if jax.process_count() > 1:
        # Every process gets the grades of all, because one host may exceed a grader's time limit
        # where another does not.
        shares = hosts.gathered([[i, asdict(grade)] for i, grade in grades.items()])
        grades = {i: Grade(**fields) for share in shares for i, fields in share}
    size = request.group_size
    return [
        Group(
            example=example,
            prompt=prompt,
            completions=tuple(completions[number * size + g] for g in range(size)),
            grades=tuple(grades[number * size + g] for g in range(size)),
        )
        for number, (example, prompt) in enumerate(zip(examples, request.prompts, strict=True))
    ]


def _grade(
    ended: SimpleQueue[tuple[int, Sampled] | None],
    request: SamplingRequest,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    grade_many: GradeMany,
) -> tuple[dict[int, Completion], dict[int, Grade]]:
    """Returns the completions of a queue that ends with None, and this process's share of grades.

    Both are by the completion's index in the request.
    """
    completions: dict[int, Completion] = {}
    grades: dict[int, Grade] = {}
    batch: list[tuple[int, Sampled] | None] = []
    while None not in batch:
        # Take all that is there, because graders are faster at many than at one by one.
        batch = [ended.get()]
        while not ended.empty():
            batch.append(ended.get())
        own = []
        for i, sampled in filter(None, batch):
            completions[i] = Completion(
                tokens=sampled.tokens,
                logprobs=sampled.logprobs,
                text=tokenizer.decode(sampled.tokens),
                finish=sampled.finish,
            )
            if i % jax.process_count() == jax.process_index():
                own.append(i)
        if own:
            new = grade_many(
                [completions[i].text for i in own],
                [examples[i // request.group_size] for i in own],
                [completions[i].finish == "length" for i in own],
            )
            grades |= zip(own, new, strict=True)
    return completions, grades


@dataclass(frozen=True, kw_only=True)
class SampledGroups:
    """The groups that a step learns from, and all groups that it sampled to get them."""

    groups: Sequence[Group]
    sampled: Sequence[Group]
    rounds: int  # of sampling, the first one included


def fill(
    sample: Callable[[int], Sequence[Group]],
    has_signal: Callable[[Group], bool],
    further_rounds: int,
) -> SampledGroups:
    """Returns the groups of `sample(0)`, those without a signal replaced as far as possible.

    `sample(r)` returns the groups of round r. `fill` calls it for r up to `further_rounds`, while a
    group has no signal (dynamic sampling, DAPO, arXiv:2503.14476 section 3.2). Every round samples
    all its groups, so that array shapes stay the same. Useful groups for which no place is left are
    dropped, because they would be off policy in the next step. A group without a replacement stays.
    """
    groups = list(sample(0))
    sampled, rounds = list(groups), 1
    places = [i for i, group in enumerate(groups) if not has_signal(group)]
    while places and rounds <= further_rounds:
        further = sample(rounds)
        rounds += 1
        sampled += further
        useful = [group for group in further if has_signal(group)]
        taken = min(len(places), len(useful))
        for place, group in zip(places[:taken], useful[:taken], strict=True):
            groups[place] = group
        places = places[taken:]
    return SampledGroups(groups=groups, sampled=sampled, rounds=rounds)


def round_key(root: jax.Array, step: int, number: int) -> jax.Array:
    """Returns the key with which round `number` of a step samples.

    Round 0 has the key of a run without dynamic sampling, fold_in(root, step). Further rounds first
    fold in 2^32 - number, which no number of a step or a sequence reaches.
    """
    if number:
        root = jax.random.fold_in(root, 2**32 - number)
    return jax.random.fold_in(root, step)
