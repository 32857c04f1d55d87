"""The job that makes conversations for a base model by a program. No jax.

The docstring under each field is what `--help` prints. sdjax.config has them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sdjax.sections import Reprompt, Shape, Task, require


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Writes conversations made by a task's program: searches with doubt, answers to a solution
    shown."""

    out: str
    """Directory: traces.jsonl, one conversation a row, and model/, a config.json and a tokenizer
    learned from such conversations, from which SFT can begin with random weights."""
    tasks: dict[str, Task]
    """Whose questions; of each task only those that are neither trained on nor held out."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of each task's rows, relative to the others; 1 for a task that is not named."""
    rows: int = 10_000
    seed: int = 0
    """Row i depends on it and i alone."""
    workers: int = 0
    """Processes; 0 is one a core. Changes no row."""
    patience: tuple[int, int] = (2, 12)
    """Least and greatest number of failures after which a search gives up, drawn evenly."""
    doubt: float = 0.75
    """Share of the places in a search where doubt is put into words."""
    guided: float = 0.4
    """Share of rows whose question comes with a solution shown, as a teacher reads it."""
    shown_answer: float = 0.3
    """Share of those that are shown the last line of a solution, without its search."""
    shown_direct: float = 0.2
    """Share of those that are shown a solution without any search. The others see a whole one."""
    trace_hazard: float = 0.7
    """Shown a whole solution: the chance, at the start and after each failure, that the answer
    turns to it."""
    answer_hazard: float = 0.2
    """Shown the last line: the same chance."""
    guided_doubt: float = 0.25
    """Shown a whole solution: the share, in a false start, of places of doubt."""
    reprompt: Reprompt = field(default_factory=Reprompt)
    """How a solution is shown: its templates."""

    vocabulary: int = 576
    """Most tokens that the tokenizer may have."""
    shape: Shape = field(default_factory=Shape)
    """Of the model; its vocabulary as given here may be larger than the tokenizer's."""

    def __post_init__(self) -> None:
        require(bool(self.tasks), "tasks", self.tasks, "needs at least one")
        for name, share in self.shares.items():
            require(name in self.tasks, "shares", name, f"must be one of {', '.join(self.tasks)}")
            require(share > 0, f"shares.{name}", share, "must be positive")
        require(self.rows >= 1, "rows", self.rows, "must be at least 1")
        require(self.vocabulary >= 261, "vocabulary", self.vocabulary, "at least 261: every byte")
        require(
            self.shape.vocab_size >= self.vocabulary,
            "shape.vocab_size",
            self.shape.vocab_size,
            f"must be at least vocabulary ({self.vocabulary})",
        )
        require(self.workers >= 0, "workers", self.workers, "must be at least 0")
        low, high = self.patience
        require(1 <= low <= high, "patience", self.patience, "needs 1 or more, the lesser first")
        for name in ("doubt", "guided", "shown_answer", "shown_direct", "guided_doubt"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie in [0, 1]")
        for name in ("trace_hazard", "answer_hazard"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "must lie in (0, 1]")
        shown = self.shown_answer + self.shown_direct
        require(shown <= 1, "shown_answer", self.shown_answer, "exceeds 1 with shown_direct")
