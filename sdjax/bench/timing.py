"""Times repeated work and reads the memory that it took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax

# Does a piece of work, numbered from 0; returns the seconds of each part.
TimedRun = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the first call, which compiles, and of the later calls."""

    first: float
    later: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds per call without compilation."""
        return statistics.median(self.later)

    @property
    def compile_s(self) -> float:
        """Seconds that the first call took longer than the median."""
        return max(self.first - self.median, 0.0)

    def less(self, seconds: float) -> Timing:
        """Returns the timing minus a part that takes `seconds` in every later call."""
        return replace(self, later=tuple(s - seconds for s in self.later))


def repeated(run: TimedRun, repeats: int) -> dict[str, Timing]:
    """Runs once and then `repeats` times; returns the timing of every part."""
    laps = [run(i) for i in range(repeats + 1)]
    return {
        name: Timing(first=laps[0][name], later=tuple(lap[name] for lap in laps[1:]))
        for name in laps[0]
    }


def added(*parts: Timing) -> Timing:
    """Returns the timing of parts that run one after another."""
    laps = zip(*(p.later for p in parts), strict=True)
    return Timing(first=sum(p.first for p in parts), later=tuple(sum(lap) for lap in laps))


def peak_bytes() -> int | None:
    """Returns the most bytes held on one device since the process began; None on a CPU."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    return max((s["peak_bytes_in_use"] for s in stats if s), default=None)
