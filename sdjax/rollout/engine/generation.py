"""The engine on the host: any number of completions through a fixed number of slots.

When a completion ends, its slot takes the next one while its neighbours go on, so a long
completion delays no other. The cache's capacity follows the longest live sequence. Once no
completion waits, the number of slots follows the number of live ones. None of this changes the
tokens that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sdjax.errors import UserError
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import hosts, rules
from sdjax.parallel.rules import bucket
from sdjax.records import Finish, Sampled
from sdjax.rollout.engine.slots import Drawn, Programs, Prompts, Slots, settings
from sdjax.rollout.interface import SamplingRequest

MOST_SLOTS = 256  # per batch shard: with more, a step's time grows with its rows
FREE_SHARE = 0.85  # of the free memory; prefill and fragmentation take the rest


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the host looks at the slots, and what it then does.

    The values change the speed but not the tokens, up to rounding (see LocalSampler.stream).
    """

    steps: int = 64
    """The most tokens that a slot draws between two looks."""
    refill: int = 16
    """While completions wait, the host also looks when one slot in `refill` is done."""
    prefill_tokens: int = 4096
    """Padded tokens per prefill; prompts are prefilled before a slot is free for them."""
    least_capacity: int = 128
    """The smallest cache; larger ones are 2, 4, ... times as large."""
    least_slots: int = 8
    """Once no completion waits, slots shrink to a quarter, a sixteenth, ... but not below this
    number. A step with fewer slots takes as long, because it reads the same weights."""
    worth: int = 256
    """Slots shrink only while a live completion may draw this many more tokens, because each
    number of slots has to be compiled."""


def capacity(current: int, tokens: int, *, least: int, most: int) -> int:
    """Returns the next capacity of a cache of capacity `current` that must hold `tokens` tokens.

    It is `least` times a power of two, or `most`. The capacity shrinks only if the tokens fill a
    quarter of it or less, because each change copies the cache.
    """
    tokens = min(tokens, most)
    if current // 4 < tokens <= current:
        return current
    size = least
    while size < tokens:
        size *= 2
    return min(size, most)


def fewer(slots: int, live: int, least: int) -> int:
    """Returns `slots` or a quarter of it, a sixteenth, ...: the smallest that holds the live ones.

    The result is not below `least`. All three numbers are per batch shard.
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
    """Returns how many slots of a capacity fit into `free` bytes per device, per batch shard.

    The number is a power of two, so that small changes of the free memory do not change it.

    Args:
        cfg: The model's sizes.
        mesh: The mesh of rollouts, which splits the cache's heads over its tensor axis.
        capacity: Tokens per slot.
        schedule: Its prefill takes memory too.
        free: None if devices do not report it; the result is then MOST_SLOTS.
    """
    most = MOST_SLOTS
    if free is not None:
        token = token_bytes(cfg, mesh)
        # Each slot also needs float32 logits, their softmax and what sampling computes from it, and
        # a second copy of one layer's keys while the cache is resized. Two batches of prefilled
        # prompts need room too.
        slot = token * capacity * (1 + 1 / (2 * cfg.num_layers)) + 32 * cfg.vocab_size
        room = FREE_SHARE * free - 2 * token * schedule.prefill_tokens
        most = min(most, max(int(room / slot), 1))
    return 1 << (most.bit_length() - 1)


def free_bytes(mesh: Mesh) -> int | None:
    """Returns the least free memory of a device of the mesh; None if devices do not report it."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if any(s is None or "bytes_limit" not in s for s in stats):
        return None
    free = min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s is not None)
    if jax.process_count() == 1:
        return free
    # Every process must get the same number, because all run the same programs.
    return int(np.min(multihost_utils.process_allgather(np.int64(free))))


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """The parts that all generations of one sampler share."""

    programs: Programs
    mesh: Mesh
    shards: int
    """Parts into which the mesh splits the slots."""
    schedule: Schedule
    stop_ids: tuple[int, ...]
    pad_id: int
    between: Callable[[], None]
    """Called before every loop of the devices; an exception in it ends the sampling."""


@dataclass(kw_only=True)
class EngineCounts:
    """What a generation ran on its devices."""

    loops: int = 0
    steps: int = 0
    slot_steps: int = 0  # steps times the number of slots in each
    tokens: int = 0
    prefilled: int = 0  # prompts
    resized: int = 0


@dataclass(kw_only=True)
class _Live:
    """A completion in a slot."""

    index: int
    prompt: int  # tokens of its prompt
    limit: int
    drawn: int = 0
    tokens: list[np.ndarray] = field(default_factory=list)  # one array per loop
    logprobs: list[np.ndarray] = field(default_factory=list)


class Generation:
    """Yields (index, Sampled) once per completion, when it ends; `counts` says what ran.

    While the caller works on an ended completion, the devices run the next loop.
    """

    def __init__(
        self,
        setup: EngineSetup,
        weights: DecodeWeights,
        request: SamplingRequest,
        limits: np.ndarray,
        *,
        slots: int,
        longest: int,
    ) -> None:
        """Prepares the generation; runs nothing on the devices.

        Args:
            setup: The parts of the sampler.
            weights: What decoding reads, on the setup's mesh.
            request: The prompts, and how to draw from them.
            limits: int32[B], the most tokens of each completion.
            slots: Their number over all shards, a multiple of `setup.shards`.
            longest: The most tokens of a sequence, padded.
        """
        assert slots % setup.shards == 0, (slots, setup.shards)
        self.counts = EngineCounts()
        self._setup, self._weights, self._request, self._limits = setup, weights, request, limits
        schedule, number = setup.schedule, len(request.prompts)
        # The key and the settings may be on another mesh over the same devices.
        self._key, self._how = hosts.place(
            (request.key, settings(request.sampling)), rules.replicated(setup.mesh)
        )
        self._most_slots = slots
        self._live: list[_Live | None] = [None] * slots
        self._started = 0
        longest_prompt = max(len(p) for p in request.prompts)
        self._width = bucket(longest_prompt)
        least = schedule.least_capacity
        self._most_capacity = max(longest, self._width, least)
        needed = max(longest_prompt + schedule.steps, self._width)
        self._capacity = capacity(0, needed, least=least, most=self._most_capacity)
        self._enough = max(slots // schedule.refill, 1)
        # Constant, so that a refill is one program; a larger refill calls it several times.
        self._entering = max(self._enough, min(slots, 8))
        self._prefill_rows = min(max(schedule.prefill_tokens // self._width, 1), number)
        self._prompts: Prompts
        self._prefilled = range(0)  # the prompts in self._prompts
        self._slots: Slots

    def __iter__(self) -> Iterator[tuple[int, Sampled]]:
        ended: list[_Live] = []
        setup = self._setup
        with jax.set_mesh(setup.mesh):
            self._slots = setup.programs.empty(rows=len(self._live), capacity=self._capacity)
            self._refill()
        while ended or any(self._live):
            drawn = None
            if any(self._live):
                setup.between()
                with jax.set_mesh(setup.mesh):
                    self._resize()
                    drawn = self._decode()
            else:
                del self._slots, self._prompts  # because a caller may keep self for its counts
            for live in ended:
                tokens, logprobs = np.concatenate(live.tokens), np.concatenate(live.logprobs)
                finish: Finish = "stop" if tokens[-1] in setup.stop_ids else "length"
                yield live.index, Sampled(tokens=tokens, logprobs=logprobs, finish=finish)
            ended = []
            if drawn is not None:
                with jax.set_mesh(setup.mesh):
                    ended = self._take(drawn)
                    self._refill()

    def _refill(self) -> None:
        """Starts waiting completions in free slots."""
        request, setup = self._request, self._setup
        free = [slot for slot, live in enumerate(self._live) if live is None]
        while free and self._started < len(self._limits):
            if self._started // request.group_size not in self._prefilled:
                self._prefill()
            # Completions of the prompts whose cache is ready.
            ready = self._prefilled.stop * request.group_size - self._started
            count = min(len(free), ready, self._entering)
            index = np.arange(self._started, self._started + count)
            prompt = index // request.group_size
            entries = np.zeros((4, self._entering), np.int32)
            entries[0] = len(self._live)  # no slot
            rows = prompt - self._prefilled.start
            entries[:, :count] = free[:count], rows, index, self._limits[index]
            placed = hosts.place(entries, rules.replicated(setup.mesh))
            self._slots = setup.programs.insert(self._slots, self._prompts, placed)
            for slot, i, p in zip(free[:count], index.tolist(), prompt.tolist(), strict=True):
                limit, length = int(self._limits[i]), len(request.prompts[p])
                self._live[slot] = _Live(index=i, prompt=length, limit=limit)
            self._started += count
            free = free[count:]

    def _prefill(self) -> None:
        """Prefills the next prompts, which replace prompts whose completions have all started."""
        request, setup, first = self._request, self._setup, self._prefilled.stop
        part = request.prompts[first : first + self._prefill_rows]
        padded = -(-self._prefill_rows // setup.shards) * setup.shards
        tokens = np.full((padded, self._width), setup.pad_id, np.int32)
        length = np.ones(padded, np.int32)
        for row, prompt in enumerate(part):
            tokens[row, : len(prompt)] = prompt
            length[row] = len(prompt)
        placed = hosts.place((tokens, length), rules.leading(setup.mesh))
        self._prompts = setup.programs.prefill(self._weights, *placed, rows=self._prefill_rows)
        self._prefilled = range(first, first + len(part))
        self.counts.prefilled += len(part)

    def _resize(self) -> None:
        """Gives the next loop a cache that it cannot outgrow, and removes slots that none needs."""
        schedule, setup = self._setup.schedule, self._setup
        live = [x for x in self._live if x is not None]
        # The tokens that each live completion has in the cache after the next loop.
        needed = max(x.prompt + min(x.drawn + schedule.steps, x.limit) for x in live)
        size = capacity(
            self._capacity,
            max(needed, self._width),
            least=schedule.least_capacity,
            most=self._most_capacity,
        )
        rows = self._kept_rows(max(x.limit - x.drawn for x in live))
        if len(rows) < self._most_slots:
            # The largest cache fits, because all slots were counted with it. So each number of
            # slots is one program, not one per capacity.
            size = self._most_capacity
        if size == self._capacity and len(rows) == len(self._live):
            return
        shard_rows = len(self._live) // setup.shards
        placed = hosts.place(np.asarray(rows, np.int32) % shard_rows, rules.leading(setup.mesh))

        def resized(x: jax.Array) -> jax.Array:
            out = setup.programs.resize(x, placed, capacity=size if x.ndim == 4 else None)
            x.delete()  # in place of a donation, which needs equal shapes
            return out

        self._slots = jax.tree.map(resized, self._slots)
        self._live = [self._live[row] for row in rows]
        self._capacity = size
        self.counts.resized += 1

    def _kept_rows(self, left: int) -> list[int]:
        """Returns the slots to keep: the same number in each shard, its live ones first.

        `left` is the most tokens that a live completion may still draw.
        """
        setup, everyone = self._setup, list(range(len(self._live)))
        if self._started < len(self._limits) or left < setup.schedule.worth:
            return everyone
        size = len(everyone) // setup.shards
        by_shard = [everyone[i : i + size] for i in range(0, len(everyone), size)]
        most = max(sum(self._live[row] is not None for row in rows) for rows in by_shard)
        size = fewer(size, most, -(-setup.schedule.least_slots // setup.shards))
        live_first = [sorted(rows, key=lambda row: self._live[row] is None) for rows in by_shard]
        return [row for rows in live_first for row in rows[:size]]

    def _decode(self) -> Drawn:
        """Starts a loop on the devices; does not wait for its end."""
        rows, setup = len(self._live), self._setup
        idle = rows - sum(live is not None for live in self._live)
        enough = idle + self._enough if self._started < len(self._limits) else rows
        self._slots, drawn = setup.programs.decode(
            self._weights,
            self._slots,
            self._key,
            self._how,
            hosts.place(np.int32(enough), rules.replicated(setup.mesh)),
            steps=setup.schedule.steps,
        )
        return drawn

    def _take(self, drawn: Drawn) -> list[_Live]:
        """Waits for a loop; returns the completions that ended in it and frees their slots.

        Raises UserError where logits were not finite: the tokens drawn from them mean nothing.
        """
        host = jax.device_get(drawn)
        self.counts.loops += 1
        self.counts.steps += int(host.steps)
        self.counts.slot_steps += int(host.steps) * len(self._live)
        ended = []
        for slot, live in enumerate(self._live):
            if live is None:
                continue
            new = int(host.count[slot]) - live.drawn
            live.tokens.append(host.tokens[slot, :new])
            live.logprobs.append(host.logprobs[slot, :new])
            if not np.isfinite(live.logprobs[-1]).all():
                at = live.drawn + int(np.argmin(np.isfinite(live.logprobs[-1])))
                raise UserError(
                    f"the model's logits are not finite at token {at} of completion {live.index}, "
                    f"after a prompt of {live.prompt} tokens: look at the weights in model.path, "
                    "lower optim.lr in a training, or set model.compute_dtype to float32"
                )
            live.drawn += new
            self.counts.tokens += new
            if host.done[slot]:
                ended.append(live)
                self._live[slot] = None
        return ended
