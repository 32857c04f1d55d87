"""Measures the engine against the plain loop, on completions of given lengths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from sdjax.bench import plain_sampler
from sdjax.bench.plain_sampler import PromptRows
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import hosts, rules
from sdjax.parallel.rules import bucket
from sdjax.rollout.engine.sampler import LocalSampler
from sdjax.rollout.engine.slots import settings
from sdjax.rollout.interface import SamplingRequest


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of the engine or of the plain loop on the same lengths."""

    tokens: int
    first: float
    """Seconds of the first run, which compiles."""
    later: tuple[float, ...]
    """Seconds of each later run."""
    slot_steps: int
    """Decode steps times the rows of each step."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of completions per second, without compilation.

        Tokens that the plain loop decodes after the end of a completion do not count.
        """
        return self.tokens / statistics.median(self.later)


def compare(
    sampler: LocalSampler,
    cfg: ModelConfig,
    weights: DecodeWeights,
    request: SamplingRequest,
    *,
    batch: int,
    repeats: int = 1,
) -> dict[str, Speed]:
    """Returns the speeds of "plain loop" and "engine" on the completions of a request.

    Args:
        sampler: the engine, without stop tokens, so that completion i has `limits[i]` tokens.
        cfg: the model's sizes.
        weights: the model.
        request: prompts, group size, sampling, key, and limits.
        batch: prompts per batch of the plain loop. It divides their number, and it is a multiple of
            the mesh's batch shards.
        repeats: runs after the first one.
    """
    prompts, limits, size = request.prompts, request.limits, request.group_size
    assert not sampler.stop_ids and len(prompts) % batch == 0, (sampler.stop_ids, batch)
    assert limits is not None

    def engine() -> int:
        run = sampler.stream(weights, request)
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
            own = limits[first * size : (first + batch) * size]
            tokens, length, limit = hosts.place((rows[part], lengths[part], own), split)
            drawn = generate(
                weights,
                PromptRows(tokens=tokens, length=length, limit=limit),
                request.key,
                settings(request.sampling),
                group_size=size,
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
