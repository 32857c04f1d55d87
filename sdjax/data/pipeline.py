"""Order, epochs, batches and position of the training examples, by Grain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

from sdjax.errors import UserError
from sdjax.records import Example

Item = TypeVar("Item")

# More examples than this are generated on demand, not held in a list.
LISTED = 10_000_000


class Batches(Generic[Item]):
    """Endless batches of examples in a seeded order, shuffled anew every epoch.

    The order is that of the whole batch: host `host` of `hosts` gets its contiguous share of each
    one, so that the examples of a step are the same on any number of hosts. `get_state` is the
    exact position, as a dict of plain values; `set_state` goes on from there.
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
        start = host * share

        def of_host(batch: Sequence[int]) -> list[Item]:
            return [examples[int(i)] for i in batch[start : start + share]]

        order = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
        self._iterator: Any = iter(
            order.batch(batch_size, drop_remainder=True, batch_fn=list)
            .map(of_host)
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        )

    def __iter__(self) -> Batches[Item]:
        return self

    def __next__(self) -> list[Item]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Returns the position as plain values that JSON can hold."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned."""
        self._iterator.set_state(state)


def drop_overlong(
    examples: Sequence[Example],
    prompt_tokens: Callable[[Example], int],
    limit: int,
    on_overlong: Literal["skip", "error"],
) -> tuple[Sequence[Example], list[Example]]:
    """Returns the examples whose prompt has at most `limit` tokens, and those left out.

    A set that generates its examples endlessly cannot be listed: a sample of it must fit, or it is
    an error.
    """
    if len(examples) > LISTED:
        sample = [examples[i] for i in range(0, len(examples), len(examples) // 256)]
        drop_overlong(sample, prompt_tokens, limit, "error")
        return examples, []
    kept: list[Example] = []
    overlong: list[Example] = []
    for example in examples:
        length = prompt_tokens(example)
        if length <= limit:
            kept.append(example)
        elif on_overlong == "skip":
            overlong.append(example)
        else:
            raise UserError(
                f"{example.task}: prompt of example {example.id} has {length} tokens, over "
                f"max_prompt_tokens ({limit}); raise it or set data.on_overlong to 'skip'"
            )
    if not kept:
        raise UserError(
            f"max_prompt_tokens is {limit}: every one of the {len(examples)} prompts is longer"
        )
    return kept, overlong
