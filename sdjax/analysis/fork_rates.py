"""Computes fork rates from the counts in the rows of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

COUNTS = ("forks", "high_entropy")
"""The fields of a row: its positions that are forks, and those whose entropy is high."""


@dataclass(frozen=True, kw_only=True)
class ForkCounts:
    """How many positions of answers are forks, as sdjax/objectives/forks.py defines them."""

    positions: int
    high_entropy: int
    forks: int

    @property
    def rate(self) -> float:
        """The share of positions that are forks."""
        return self.forks / self.positions

    @property
    def share(self) -> float | None:
        """The share of forks among positions of high entropy; None without such a position."""
        return self.forks / self.high_entropy if self.high_entropy else None

    def metrics(self) -> dict[str, float]:
        """Returns the rates by the names that training logs."""
        return {"fork_rate": self.rate} | ({} if self.share is None else {"fork_share": self.share})

    def to_dict(self) -> dict[str, Any]:
        """Returns counts and rates as plain values for JSON."""
        return asdict(self) | {"rate": self.rate, "share": self.share}


def of_rows(rows: Sequence[Mapping[str, Any]]) -> ForkCounts | None:
    """Returns the counts of some answers; None if a row has none (eval.fork_rate False)."""
    if not all(name in row for row in rows for name in COUNTS):
        return None
    forks, high = (sum(row[name] for row in rows) for name in COUNTS)
    return ForkCounts(positions=sum(row["tokens"] for row in rows), high_entropy=high, forks=forks)
