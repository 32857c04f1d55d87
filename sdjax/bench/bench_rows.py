"""The report of a timed piece of work, and a table of such reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sdjax.bench.timing import Timing


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A timed piece of work and its size over all devices; None where a size does not apply."""

    phase: str
    timing: Timing
    sequences: int
    tokens: int | None = None
    """Tokens of completions."""
    steps: int = 1
    """Steps of decoding; 1 for other work."""
    compiles: bool = True
    """Whether the first call takes longer because it compiles this work."""
    flops: int | None = None
    """Floating-point operations that the work needs (models/flops.py)."""
    recomputed: int = 0
    """Operations that rematerialization repeats."""
    bytes: int | None = None
    """The least number of bytes that the work must read."""
    peak_bytes: int | None = None
    """Most memory held on one device since the process began."""
    losses: tuple[float, ...] | None = None
    """The loss of each update from the first on; another mesh gives the same numbers."""

    def to_dict(self, flops_per_s: float, bytes_per_s: float) -> dict[str, Any]:
        """Returns sizes, seconds and rates; the arguments are the peak rates of all devices."""
        done = None if self.flops is None else self.flops + self.recomputed
        sizes = {k: v for k, v in asdict(self).items() if k not in ("timing", "compiles")}
        return sizes | {
            "seconds": self.timing.median,
            "seconds_of_each": list(self.timing.later),
            "compile_s": self.timing.compile_s if self.compiles else None,
            "ms_per_step": 1e3 * self.timing.median / self.steps,
            "tokens_per_s": self._share(self.tokens, 1.0),
            "mfu": self._share(self.flops, flops_per_s),
            "hfu": self._share(done, flops_per_s),
            "bandwidth_share": self._share(self.bytes, bytes_per_s),
        }

    def _share(self, amount: int | None, peak: float) -> float | None:
        """Returns amount / (seconds x peak); None if one of them is unknown."""
        if amount is None or peak <= 0 or self.timing.median <= 0:
            return None
        return amount / self.timing.median / peak


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "sequences": ("sequences", "{:,}".format),
    "tokens/s": ("tokens_per_s", "{:,.0f}".format),
    "ms per step": ("ms_per_step", "{:,.2f}".format),
    "MFU": ("mfu", "{:.1%}".format),
    "HFU": ("hfu", "{:.1%}".format),
    "bandwidth": ("bandwidth_share", "{:.1%}".format),
    "peak GB": ("peak_bytes", lambda v: f"{v / 1e9:.1f}"),
    "compile s": ("compile_s", "{:.1f}".format),
}


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of rows that `BenchRow.to_dict` returned."""
    lines = [["phase", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for row in rows:
        cells = ((show, row[key]) for key, show in COLUMNS.values())
        lines.append([row["phase"], *("-" if v is None else show(v) for show, v in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
