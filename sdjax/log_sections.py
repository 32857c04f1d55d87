"""The sections of a config that say what a run writes and keeps. No jax.

The docstring under each field is what `--help` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.sections import require, require_one


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is written while running."""

    tensorboard: bool = True
    rollouts: bool = True
    """Write every completion as a line of rollouts.jsonl."""
    rollouts_per_step: int = 64
    """Completions of a step whose line has everything: reprompt, and token by token the text,
    log-probabilities and entropies. As many correct as wrong ones as far as there are; the others'
    lines have text and grade. 0: all. About 55 bytes a token with everything, 3 without."""
    alternatives: int = 5
    """Likeliest tokens of student and teacher that are kept for each token of a few completions; a
    forward pass more over these. 0: none."""
    alternatives_of: int = 4
    """Completions of a step that have them, chosen among those with everything. 0: none."""
    alternatives_tokens: int = 2048
    """First tokens of a completion that have them; about 280 bytes a token more."""
    progress: bool = True
    """Show a progress bar on the terminal."""

    def __post_init__(self) -> None:
        for name in ("rollouts_per_step", "alternatives", "alternatives_of", "alternatives_tokens"):
            value = getattr(self, name)
            require(value >= 0, f"log.{name}", value, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """When an evaluation during training is a warning: compared with the first of the run."""

    epistemic_drop: float = 0.5
    """Share of its epistemic words per 1,000 tokens that a set of answers may lose; 0 is off."""
    ood_drop: float = 0.2
    """Share of its score (avg@k) that an out-of-domain set may lose; 0 is off."""
    stop: bool = False
    """End the run there as at its last step: with checkpoint, export and exit code 0."""

    def __post_init__(self) -> None:
        for name in ("epistemic_drop", "ood_drop"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"alarm.{name}", value, "must lie in [0, 1]; 0 is off")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is kept of a run."""

    every: int = 50
    """Steps between checkpoints; 0 keeps none, and a signal then ends the run without one."""
    keep: int = 2
    """Newest checkpoints kept. Where the only one is damaged, nothing is left to go on from."""
    keep_best: int = 0
    """Checkpoints kept besides: those with the best `best_metric`."""
    best_metric: str = ""
    """A metric of the evaluations, such as eval/avg@4."""
    best_is: Literal["highest", "lowest"] = "highest"
    export: bool = True
    """Write the final model as a Hugging Face folder."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "must not be negative")
        require_one("checkpoint.keep", self.keep)
        require(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "must not be negative")
        require(
            self.keep_best == 0 or bool(self.best_metric),
            "checkpoint.best_metric",
            self.best_metric,
            "must name what checkpoint.keep_best compares, such as eval/avg@4",
        )
