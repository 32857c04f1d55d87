"""What a sampler must offer: a request goes in, completions come out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from sdjax.config import Sampling
from sdjax.records import Sampled


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """The completions to draw: completion i is number i % group_size of prompt i // group_size."""

    prompts: Sequence[np.ndarray]  # int32[P_i] each
    group_size: int
    sampling: Sampling
    key: jax.Array  # completion i draws with fold_in(key, i)
    limits: np.ndarray | None = None
    """int32[B], the most tokens of each completion; None: `sampling.max_completion_tokens` for all.
    A server takes none."""


class Sampler(Protocol):
    """Draws completions in this process (LocalSampler) or on a server (RemoteSampler)."""

    def weights(self, params: nnx.State, /) -> Any:
        """Returns the weights that `stream` reads, made from params; call it once per step."""

    def stream(self, weights: Any, request: SamplingRequest) -> Iterable[tuple[int, Sampled]]:
        """Yields (i, completion i of the request), each as soon as it ends."""


def sample(sampler: Sampler, weights: Any, request: SamplingRequest) -> list[list[Sampled]]:
    """Returns all completions of a request, one list of `group_size` per prompt."""
    ended, size = dict(sampler.stream(weights, request)), request.group_size
    return [[ended[first + g] for g in range(size)] for first in range(0, len(ended), size)]
