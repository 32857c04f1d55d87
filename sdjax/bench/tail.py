"""Rollouts of lognormal lengths: what the longest sequence of a batch costs the others."""

from __future__ import annotations

import jax

from sdjax.bench import steps, synthetic, timing
from sdjax.bench.rows import Row
from sdjax.bench.subject import Subject
from sdjax.metrics import Timers


def measure(s: Subject, prompts: int) -> list[Row]:
    """Returns the row of the plain loop, which decodes a batch until its longest sequence ends."""
    cfg, rng = s.cfg, s.rng()
    asked = synthetic.prompts(cfg, prompts, s.model.vocab_size, rng)
    size = prompts * cfg.group_size
    lengths = synthetic.lengths(cfg, cfg.batches * size, rng).reshape(cfg.batches, size)
    decoding = jax.block_until_ready(s.sampler.weights(s.params()))

    # No sequence stops by itself, so a batch is given the number of tokens of its longest: the
    # loop's work is the same, its cache no larger than that batch needs.
    def plain(number: int) -> dict[str, float]:
        timers = Timers()
        with timers("plain"):
            for batch in lengths:
                steps.sample(s, decoding, asked, int(batch.max()), number)
        return timers.take()

    return [
        Row(
            phase="tail: plain loop",
            timing=s.timings(f"tail_{prompts}", plain)["time/plain_s"],
            sequences=lengths.size,
            tokens=int(lengths.sum()),
            peak_bytes=timing.peak_bytes(),
        )
    ]
