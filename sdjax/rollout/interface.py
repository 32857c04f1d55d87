"""What collect asks of whatever draws completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from sdjax.config import Sampling
from sdjax.rollout.sampler import Sampled


class Sampler(Protocol):
    """Draws completions: here (sampler.Sampler) or on a server (remote.RemoteSampler)."""

    def weights(self, params: nnx.State, /) -> Any:
        """Returns what `sample` reads of the params; call it once a step."""

    def sample(
        self,
        weights: Any,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        sampling: Sampling,
        key: jax.Array,
    ) -> list[list[Sampled]]:
        """Returns `group_size` completions of each prompt, int32[P_i] tokens, in their order."""
