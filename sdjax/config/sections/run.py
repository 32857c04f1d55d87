"""The sections that describe data, logs, alarms and checkpoints of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_one


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What every task config has; the rest stands in tasks/NAME.py."""

    seed: int = 0
    """Of generated questions and of subsets."""
    held_out: int = 200
    """Number of held-out examples; they never occur in training."""

    def __post_init__(self) -> None:
        require_one("task.held_out", self.held_out)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Order, filtering and batching of the training examples."""

    seed: int = 0
    """Of the order in which examples are visited."""
    limit: int = 0
    """Training examples used, the first ones, so that a smaller set is part of a larger; 0 uses
    all. A step of more prompts than there are examples has some of them more than once, each in a
    group of its own (arXiv:2603.24472 section 6.2)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a row that cannot be read does: end the run, or be counted and listed."""
    on_overlong: Literal["skip", "error"] = "skip"
    """What a prompt over rollout.max_prompt_tokens does; skipped ones are counted and reported."""

    def __post_init__(self) -> None:
        require(self.limit >= 0, "data.limit", self.limit, "must not be negative; 0 uses all")


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
