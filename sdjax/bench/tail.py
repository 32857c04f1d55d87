"""Rollouts of lognormal lengths: what the longest sequence of a batch costs the others."""

from __future__ import annotations

import jax
import numpy as np

from sdjax.bench import engine_speed, synthetic, timing
from sdjax.bench.bench_rows import BenchRow
from sdjax.bench.subject import Subject
from sdjax.config import Sampling


def measure(s: Subject, prompts: int) -> list[BenchRow]:
    """Returns a row of the plain loop, which decodes a batch until its longest sequence ends, and
    one of the engine with as many slots as a batch has sequences."""
    cfg, rng = s.cfg, s.rng()
    asked = synthetic.prompts(cfg, cfg.batches * prompts, s.model.vocab_size, rng)
    lengths = synthetic.lengths(cfg, len(asked) * cfg.group_size, rng).astype(np.int32)
    made = engine_speed.compare(
        s.sampler,
        s.model,
        jax.block_until_ready(s.sampler.weights(s.params())),
        asked,
        group_size=cfg.group_size,
        sampling=Sampling(
            max_completion_tokens=cfg.completion_tokens, slots=prompts * cfg.group_size
        ),
        limits=lengths,
        batch=prompts,
        repeats=cfg.repeats,
    )
    return [
        BenchRow(
            phase=f"tail: {name}",
            timing=timing.Timing(first=laps.first, later=laps.later),
            sequences=lengths.size,
            tokens=int(lengths.sum()),
            peak_bytes=timing.peak_bytes(),
        )
        for name, laps in made.items()
    ]
