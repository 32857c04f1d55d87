"""What collect asks of whatever draws completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from sdjax.config import Sampling
from sdjax.records import Finish


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The tokens drawn for one prompt, the stop token included, and why they ended."""

    tokens: np.ndarray  # int32[T_i]
    logprobs: np.ndarray  # float32[T_i]
    finish: Finish

    @classmethod
    def of(cls, tokens: np.ndarray, logprobs: np.ndarray, stop_ids: tuple[int, ...]) -> Sampled:
        """Returns a completion that has ended, at a stop token or at its limit."""
        finish: Finish = "stop" if tokens[-1] in stop_ids else "length"
        return cls(tokens=tokens, logprobs=logprobs, finish=finish)


class Sampler(Protocol):
    """Draws completions: here (sampler.Sampler) or on a server (remote.RemoteSampler)."""

    def weights(self, params: nnx.State, /) -> Any:
        """Returns what `stream` reads of the params; call it once a step."""

    def stream(
        self,
        weights: Any,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        sampling: Sampling,
        key: jax.Array,
    ) -> Iterable[tuple[int, Sampled]]:
        """Yields (p * group_size + g, completion g of prompt p, int32[P_p]), each as it ends."""


def in_groups(ended: Iterable[tuple[int, Sampled]], group_size: int) -> list[list[Sampled]]:
    """Returns all that a stream yields, by prompt."""
    by_index = dict(ended)
    flat = [by_index[i] for i in range(len(by_index))]
    return [flat[i : i + group_size] for i in range(0, len(flat), group_size)]
