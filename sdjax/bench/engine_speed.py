"""Engine against plain loop, with lengths that are set and not drawn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sdjax.bench import plain_sampler
from sdjax.config import Sampling
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import hosts, rules
from sdjax.parallel.buckets import bucket
from sdjax.rollout.engine import draw
from sdjax.rollout.engine.sampler import LocalSampler


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one of the two made of the same lengths."""

    tokens: int
    first: float
    """Seconds of the first time, which compiles."""
    later: tuple[float, ...]
    """Seconds of each time after it."""
    slot_steps: int
    """Decode steps times the rows that each had."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the completions, not those decoded after their end; compilation left out."""
        return self.tokens / statistics.median(self.later)


def compare(
    sampler: LocalSampler,
    cfg: ModelConfig,
    weights: DecodeWeights,
    prompts: Sequence[np.ndarray],
    *,
    group_size: int,
    sampling: Sampling,
    limits: np.ndarray,
    batch: int,
    repeats: int = 1,
) -> dict[str, Speed]:
    """Returns the speeds of "plain loop" and "engine" on `group_size` completions of each prompt.

    Completion i has `limits[i]` tokens, int32[B]: `sampler` must have no stop tokens. The plain
    loop takes `batch` prompts at a time, a number that divides them and the batch shards of the
    mesh divide. Each runs once, and then `repeats` times that count.
    """
    assert not sampler.stop_ids and len(prompts) % batch == 0, (sampler.stop_ids, batch)
    key = jax.random.key(0)

    def engine() -> int:
        run = sampler.stream(
            weights, prompts, group_size=group_size, sampling=sampling, key=key, limits=limits
        )
        tokens = sum(len(sampled.tokens) for _, sampled in run)
        assert tokens == limits.sum()
        return run.counts.slot_steps

    generate = plain_sampler.make(cfg, stop_ids=(), pad_id=sampler.pad_id)
    width, split = bucket(max(map(len, prompts))), rules.leading(sampler.mesh)
    rows = np.stack([np.pad(p, (0, width - len(p))) for p in prompts]).astype(np.int32)
    lengths = np.array([len(p) for p in prompts], np.int32)

    def loop() -> int:
        slot_steps = 0
        for first in range(0, len(prompts), batch):
            part = slice(first, first + batch)
            own = limits[first * group_size : (first + batch) * group_size]
            drawn = generate(
                weights,
                *hosts.place((rows[part], lengths[part], own), split),
                key,
                draw.settings(sampling),
                group_size=group_size,
                capacity=bucket(int(limits.max())),
            )
            assert np.array_equal(jax.device_get(drawn)[2], own)
            slot_steps += len(own) * int(own.max())
        return slot_steps

    return {
        name: _timed(run, int(limits.sum()), repeats)
        for name, run in (("plain loop", loop), ("engine", engine))
    }


def _timed(run: Callable[[], int], tokens: int, repeats: int) -> Speed:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        slot_steps = run()
        seconds.append(time.perf_counter() - start)
    return Speed(tokens=tokens, first=seconds[0], later=tuple(seconds[1:]), slot_steps=slot_steps)
