"""Times rollouts of lognormal lengths, where the longest sequence of a batch delays the others."""

from __future__ import annotations

import jax
import numpy as np

from sdjax.bench import engine_speed, synthetic, timing
from sdjax.bench.bench_rows import BenchRow
from sdjax.bench.subject import Subject
from sdjax.config import Sampling
from sdjax.rollout.interface import SamplingRequest


def measure(s: Subject, prompts: int) -> list[BenchRow]:
    """Returns one row for the plain loop and one for the engine.

    The plain loop decodes a batch until its longest sequence ends. The engine has as many slots as
    a batch has sequences.
    """
    cfg, rng = s.cfg, s.rng()
    drawn = synthetic.prompts(cfg, cfg.batches * prompts, s.model.vocab_size, rng)
    lengths = synthetic.lengths(cfg, len(drawn) * cfg.group_size, rng).astype(np.int32)
    speeds = engine_speed.compare(
        s.sampler,
        s.model,
        jax.block_until_ready(s.sampler.weights(s.params())),
        SamplingRequest(
            prompts=drawn,
            group_size=cfg.group_size,
            sampling=Sampling(
                max_completion_tokens=cfg.completion_tokens, slots=prompts * cfg.group_size
            ),
            key=jax.random.key(0),
            limits=lengths,
        ),
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
        for name, laps in speeds.items()
    ]
