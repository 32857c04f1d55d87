"""How many slots, and how large a cache: arithmetic on the host."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel.mesh import batch_shards

MOST_SLOTS = 256  # a shard: there a step's time is that of its rows, no more that of the weights
FREE_SHARE = 0.85  # of the free memory; the rest is for prefill and fragmentation


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the host looks at the slots, and what it then does. Changes speed, not tokens (but for
    rounding, see Sampler.stream)."""

    steps: int = 64
    """Most tokens that a slot draws between two looks."""
    refill: int = 16
    """With completions waiting, it also looks when one of so many slots is done."""
    prefill_tokens: int = 4096
    """Prompts are prefilled so many padded tokens at a time, ahead of the slots."""
    least_capacity: int = 128
    """Smallest cache; the others are twice, four times, ... as large."""
    least_slots: int = 8
    """With none waiting, slots go down to a quarter, a sixteenth, ... but not below it: a step of
    fewer takes as long, reading the weights."""
    worth: int = 256
    """Nor where no live completion may draw so many more tokens: each size has to be compiled."""


def capacity(current: int, tokens: int, *, least: int, most: int) -> int:
    """Returns the cache's next capacity where it is `current` and so many tokens are needed.

    `least` times a power of two, or `most`. It shrinks only if the tokens fill no more than a
    quarter: each change copies the cache.
    """
    if current // 4 < tokens <= current:
        return current
    size = least
    while size < tokens:
        size *= 2
    return min(size, most)


def fewer(slots: int, live: int, least: int) -> int:
    """Returns `slots` or a quarter of it, a sixteenth, ...: the least that holds the live ones.

    All three count one shard's; none below `least`.
    """
    while (quarter := -(-slots // 4)) >= max(live, least) and quarter < slots:
        slots = quarter
    return slots


def token_bytes(cfg: ModelConfig, mesh: Mesh) -> int:
    """Returns the bytes of one token's keys and values on one device."""
    size = np.dtype(jax.numpy.dtype(cfg.compute_dtype)).itemsize
    return cfg.num_layers * 2 * cfg.num_kv_heads * cfg.head_dim * size // mesh.shape["tensor"]


def slots_that_fit(
    cfg: ModelConfig, mesh: Mesh, capacity: int, schedule: Schedule, free: int | None
) -> int:
    """Returns how many slots of a capacity fit `free` bytes a device, over all shards.

    A power of two on each shard, so that a little more or less of free memory changes nothing.
    """
    most = MOST_SLOTS
    if free is not None:
        # Beside the cache: logits, their softmax and what sampling makes of it, in float32; two
        # batches of prefilled prompts; and while the cache is resized, one layer's keys twice.
        token = token_bytes(cfg, mesh)
        slot = token * capacity * (1 + 1 / (2 * cfg.num_layers)) + 32 * cfg.vocab_size
        room = FREE_SHARE * free - 2 * token * schedule.prefill_tokens
        most = min(most, max(int(room / slot), 1))
    return (1 << (most.bit_length() - 1)) * batch_shards(mesh)


def free_bytes(mesh: Mesh) -> int | None:
    """Returns the least free memory of a device of the mesh; None where devices do not tell."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if any(s is None or "bytes_limit" not in s for s in stats):
        return None
    free = min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s is not None)
    if jax.process_count() == 1:
        return free
    # Every process must come to the same number: they run the same programs.
    return int(np.min(multihost_utils.process_allgather(np.int64(free))))
