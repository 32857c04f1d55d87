"""Decides the order, epochs, batches and position of the training examples, with Grain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

from sdjax.errors import UserError
from sdjax.io import progress
from sdjax.records import Example

Item = TypeVar("Item")

# A data set with more examples than this generates them on demand, so nothing may list them.
LISTED = 10_000_000


class Batches(Generic[Item]):
    """Yields batches of examples without end, in a seeded order that differs in every epoch.

    Host `host` of `hosts` gets its contiguous share of each whole batch, so that the examples of a
    step are the same on any number of hosts. `get_state` returns the exact position; `set_state`
    restores it.
    """

    def __init__(
        self,
        examples: Sequence[Item],
        batch_size: int,
        seed: int,
        *,
        host: int = 0,
        hosts: int = 1,
    ) -> None:
        import grain

        if not examples:
            raise UserError("data: no training example is left after filtering")
        if batch_size % hosts:
            raise UserError(
                f"rollout.prompts_per_step is {batch_size}: must be divisible by {hosts} hosts"
            )
        share = batch_size // hosts
        self._share = slice(host * share, (host + 1) * share)
        order = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
        self._iterator: Any = iter(
            order.batch(batch_size, drop_remainder=True, batch_fn=list).to_iter_dataset(
                grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            )
        )

    def __iter__(self) -> Batches[Item]:
        return self

    def __next__(self) -> list[Item]:
        return next(self._iterator)[self._share]

    def get_state(self) -> dict[str, Any]:
        """Returns the position as plain values that JSON can hold."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that `get_state` returned."""
        self._iterator.set_state(state)


def drop_overlong(
    examples: Sequence[Example],
    prompt_tokens: Callable[[Example], int],
    limit: int,
    on_overlong: Literal["skip", "error"],
    field: str = "max_prompt_tokens",
) -> tuple[Sequence[Example], list[Example]]:
    """Returns the examples whose prompt has at most `limit` tokens, and those left out.

    A data set of more than LISTED examples is not listed: some 256 of its prompts are measured, and
    one that is too long is an error.

    Args:
        examples: All examples.
        prompt_tokens: Returns the number of tokens of an example's prompt.
        limit: The longest prompt in tokens.
        on_overlong: As in config.Data.
        field: The config field that sets the limit.

    Raises:
        UserError: A prompt is too long and `on_overlong` is "error", every prompt is too long, or
            there is none.
    """
    if not len(examples):
        raise UserError("task: it has no example here; name a source for these examples")
    if len(examples) > LISTED:
        sample = [examples[i] for i in range(0, len(examples), len(examples) // 256)]
        drop_overlong(sample, prompt_tokens, limit, "error", field)
        return examples, []
    kept: list[Example] = []
    overlong: list[Example] = []
    for example in progress.told(examples, "tokenising", "prompts", len(examples)):
        length = prompt_tokens(example)
        if length <= limit:
            kept.append(example)
        elif on_overlong == "skip":
            overlong.append(example)
        else:
            raise UserError(
                f"{example.task}: prompt of example {example.id} has {length} tokens, over "
                f"{field} ({limit}); raise it or set data.on_overlong to 'skip'"
            )
    if not kept:
        raise UserError(f"{field} is {limit}: every one of the {len(examples)} prompts is longer")
    return kept, overlong
