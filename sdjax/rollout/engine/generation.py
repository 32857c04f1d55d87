"""The engine: any number of completions through a fixed number of slots. Its part on the host.

A slot whose completion has ended takes the next one while its neighbours go on, so a long
completion holds nobody up. The cache follows the longest live sequence; once nothing waits, the
number of slots follows the number of live ones. What is drawn depends on none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh

from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import hosts, rules
from sdjax.parallel.buckets import bucket
from sdjax.parallel.mesh import batch_shards
from sdjax.rollout.engine import draw, sizes
from sdjax.rollout.engine.sizes import Schedule
from sdjax.rollout.engine.slots import Drawn, Programs, Prompts, Slots
from sdjax.rollout.interface import Sampled


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn: completion i is number i % group_size of prompt i // group_size."""

    prompts: Sequence[np.ndarray]  # int32[P_i] each
    limits: np.ndarray  # int32[B]: the most tokens of each completion
    group_size: int
    how: draw.Settings
    key: jax.Array
    stop_ids: tuple[int, ...]
    pad_id: int

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that can come of it."""
        lengths = np.repeat([len(p) for p in self.prompts], self.group_size)
        return int(np.max(lengths + self.limits))


@dataclass(kw_only=True)
class EngineCounts:
    """What a run made its devices do."""

    loops: int = 0
    steps: int = 0
    slot_steps: int = 0  # steps times the slots there were
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
    tokens: list[np.ndarray] = field(default_factory=list)  # a piece a loop
    logprobs: list[np.ndarray] = field(default_factory=list)

    def needs(self, steps: int) -> int:
        """Returns how many tokens of cache it fills in so many more steps."""
        return self.prompt + min(self.drawn + steps, self.limit)


class Generation:
    """Yields (index, Sampled) as completions end, once; `counts` says what it took.

    While the caller works on what it got, the devices go on with the next loop.
    """

    def __init__(
        self,
        programs: Programs,
        weights: DecodeWeights,
        request: Request,
        *,
        mesh: Mesh,
        slots: int,
        schedule: Schedule,
        between: Callable[[], None],
    ) -> None:
        """`between` is called before every loop; what it raises ends the run."""
        shards = batch_shards(mesh)
        assert slots % shards == 0, (slots, shards)
        self.counts = EngineCounts()
        self._programs, self._weights, self._request = programs, weights, request
        self._mesh, self._shards, self._schedule = mesh, shards, schedule
        # They may have been made for another mesh over the same devices.
        rep = rules.replicated(mesh)
        self._key, self._how = hosts.place((request.key, request.how), rep)
        self._between = between
        self._most_slots = slots
        self._live: list[_Live | None] = [None] * slots
        self._started = 0
        longest_prompt = max(len(p) for p in request.prompts)
        self._width = bucket(longest_prompt)
        least, longest = schedule.least_capacity, bucket(request.longest)
        self._most_capacity = max(longest, self._width, least)
        self._capacity = 0
        self._capacity = self._next_capacity(longest_prompt + schedule.steps)
        self._enough = max(slots // schedule.refill, 1)
        # Constant, so that a refill is one program; a larger one is several calls.
        self._entering = max(self._enough, min(slots, 8))
        self._prefill_rows = min(
            max(schedule.prefill_tokens // self._width, 1), len(request.prompts)
        )
        self._prompts: Prompts
        self._prefilled = range(0)  # prompts whose cache is at hand
        self._slots: Slots

    def __iter__(self) -> Iterator[tuple[int, Sampled]]:
        ended: list[_Live] = []
        with jax.set_mesh(self._mesh):
            self._slots = self._programs.empty(rows=len(self._live), capacity=self._capacity)
            self._refill()
        while any(self._live):
            self._between()
            with jax.set_mesh(self._mesh):
                self._resize()
                drawn = self._decode()
            yield from map(self._result, ended)
            with jax.set_mesh(self._mesh):
                ended = self._take(drawn)
                self._refill()
        del self._slots, self._prompts  # A caller may keep the run for its counts.
        yield from map(self._result, ended)

    def _next_capacity(self, tokens: int) -> int:
        """Returns the capacity for so many tokens; never less than a padded prompt."""
        least, most = self._schedule.least_capacity, self._most_capacity
        tokens = min(max(tokens, self._width), most)
        return sizes.capacity(self._capacity, tokens, least=least, most=most)

    @property
    def _waiting(self) -> int:
        return len(self._request.limits) - self._started

    def _refill(self) -> None:
        """Starts waiting completions in free slots."""
        free = [slot for slot, live in enumerate(self._live) if live is None]
        while free and self._waiting:
            if self._started // self._request.group_size not in self._prefilled:
                self._prefill()
            at_hand = self._prefilled.stop * self._request.group_size - self._started
            count = min(len(free), at_hand, self._entering)
            self._insert(free[:count])
            free = free[count:]

    def _prefill(self) -> None:
        """Prefills the next prompts, in place of those whose completions have all started."""
        request, first = self._request, self._prefilled.stop
        part = request.prompts[first : first + self._prefill_rows]
        filled = -(-self._prefill_rows // self._shards) * self._shards
        tokens = np.full((filled, self._width), request.pad_id, np.int32)
        length = np.ones(filled, np.int32)
        for row, prompt in enumerate(part):
            tokens[row, : len(prompt)] = prompt
            length[row] = len(prompt)
        placed = hosts.place((tokens, length), rules.leading(self._mesh))
        self._prompts = self._programs.prefill(self._weights, *placed, rows=self._prefill_rows)
        self._prefilled = range(first, first + len(part))
        self.counts.prefilled += len(part)

    def _insert(self, free: Sequence[int]) -> None:
        """Starts the next completions in these slots; their prompts are at hand."""
        request, count = self._request, len(free)
        index = np.arange(self._started, self._started + count)
        prompt = index // request.group_size
        entries = np.zeros((4, self._entering), np.int32)
        entries[0] = len(self._live)  # no slot
        entries[:, :count] = free, prompt - self._prefilled.start, index, request.limits[index]
        placed = hosts.place(entries, rules.replicated(self._mesh))
        self._slots = self._programs.insert(self._slots, self._prompts, placed)
        self._started += count
        for slot, i, p in zip(free, index.tolist(), prompt.tolist(), strict=True):
            limit = int(request.limits[i])
            self._live[slot] = _Live(index=i, prompt=len(request.prompts[p]), limit=limit)

    def _resize(self) -> None:
        """Gives the next loop a cache that it cannot outgrow, and no slots that nobody needs."""
        live = [x for x in self._live if x is not None]
        capacity = self._next_capacity(max(x.needs(self._schedule.steps) for x in live))
        rows = self._kept_rows(max(x.limit - x.drawn for x in live))
        if len(rows) < self._most_slots:
            # There is room: it is what all slots were counted with. So each number of slots is one
            # program, not one for each capacity.
            capacity = self._most_capacity
        if capacity == self._capacity and len(rows) == len(self._live):
            return
        shard_rows = len(self._live) // self._shards
        placed = hosts.place(np.asarray(rows, np.int32) % shard_rows, rules.leading(self._mesh))

        def resized(x: jax.Array) -> jax.Array:
            out = self._programs.resize(x, placed, capacity=capacity if x.ndim == 4 else None)
            x.delete()  # It cannot be donated, having another shape.
            return out

        self._slots = jax.tree.map(resized, self._slots)
        self._live = [self._live[row] for row in rows]
        self._capacity = capacity
        self.counts.resized += 1

    def _kept_rows(self, left: int) -> list[int]:
        """Returns the slots to keep; of each shard as many, its live ones first.

        `left` is what the live completion with the highest limit may still draw.
        """
        everyone = list(range(len(self._live)))
        if self._waiting or left < self._schedule.worth:
            return everyone
        size = len(everyone) // self._shards
        by_shard = [everyone[i : i + size] for i in range(0, len(everyone), size)]
        most = max(sum(self._live[row] is not None for row in rows) for rows in by_shard)
        size = sizes.fewer(size, most, -(-self._schedule.least_slots // self._shards))
        live_first = [sorted(rows, key=lambda row: self._live[row] is None) for rows in by_shard]
        return [row for rows in live_first for row in rows[:size]]

    def _decode(self) -> Drawn:
        """Starts a loop on the devices; does not wait for it."""
        rows = len(self._live)
        idle = rows - sum(live is not None for live in self._live)
        enough = idle + self._enough if self._waiting else rows
        self._slots, drawn = self._programs.decode(
            self._weights,
            self._slots,
            self._key,
            self._how,
            hosts.place(np.int32(enough), rules.replicated(self._mesh)),
            steps=self._schedule.steps,
        )
        return drawn

    def _take(self, drawn: Drawn) -> list[_Live]:
        """Waits for a loop; returns the completions that ended in it, their slots free."""
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
            live.drawn += new
            self.counts.tokens += new
            if host.done[slot]:
                ended.append(live)
                self._live[slot] = None
        return ended

    def _result(self, live: _Live) -> tuple[int, Sampled]:
        tokens, logprobs = np.concatenate(live.tokens), np.concatenate(live.logprobs)
        return live.index, Sampled.of(tokens, logprobs, self._request.stop_ids)
