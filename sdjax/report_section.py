"""The config of the report job; sdjax.config has it too. No jax."""

from __future__ import annotations

from dataclasses import dataclass

from sdjax.sections import require


@dataclass(frozen=True, kw_only=True)
class Report:
    """Shows trainings side by side in one HTML file: curves, epistemic words, rollouts."""

    runs: tuple[str, ...]
    """Run directories of trainings, finished or not."""
    out: str = "report.html"
    """HTML file to write; it holds everything it shows. One that is there is replaced."""
    title: str = "sdjax report"
    plots: str | None = None
    """Directory for the curves as PNG files too; needs matplotlib (pip install 'sdjax[plots]')."""
    lexicon: str | None = None
    """Epistemic words that are marked in rollouts and filtered by: paper, word, or a JSON file of
    one's own {"word": ["form", ...], ...}. None: those of the first run."""
    max_rollouts: int = 5000
    """Rollouts shown at most. Runs get even shares; of a run those with their tokens come first,
    whole groups evenly spaced from its first to its last."""
    max_mb: float = 40.0
    """Size of the file at most, in millions of bytes. Over it, alternatives of every second, third,
    ... completion are kept, then fewer groups are shown. The page says so."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs", self.runs, "needs at least one run directory")
        require(
            self.out.endswith((".html", ".htm")), "out", self.out, "must end in .html: it is a file"
        )
        require(self.max_rollouts >= 0, "max_rollouts", self.max_rollouts, "must not be negative")
        require(self.max_mb >= 1, "max_mb", self.max_mb, "must be at least 1")
