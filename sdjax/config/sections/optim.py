"""The section that describes the optimizer and how completions become updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_one


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW and how a step's completions become updates."""

    lr: float = 1e-5
    warmup_steps: int = 10
    """Steps (not updates) of linear warm-up."""
    warmup_from: Literal["first", "zero"] = "first"
    """first: the first step already has 1/warmup_steps of lr; zero: the first step's lr is 0, as
    in the reference."""
    decay: tuple[int, int] | None = None
    """(from, to): the steps over which lr falls linearly to 0, where it stays; None: it is kept."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """Upper bound of the gradient's global norm."""
    most_skipped: int = 5
    """An update whose loss or gradient is not finite is skipped. So many in a row end the run, with
    the last one's batch and state saved for --replay; 0: none do."""
    minibatches: int = 1
    """Updates a step: its groups are split into as many equal parts."""
    microbatch: int = 8
    """Rows whose activations exist at one time, over all devices; changes memory, not results. A
    row is one completion after its context, or more of them with row_tokens."""
    row_tokens: int = 0
    """Completions, each with its context, share rows of up to so many tokens, counted in the
    longer of the student's row and the teacher's; changes time and memory, not results. A longer
    one raises the limit for its update. 0: each has a row of its own, padded to the longest. Set
    it where lengths differ, to about the longest or twice that: attention's time grows with a
    row, since it masks the tokens of other completions and does not skip them."""

    def __post_init__(self) -> None:
        require(self.lr >= 0, "optim.lr", self.lr, "must not be negative")
        require(
            self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must not be negative"
        )
        first, last = self.decay or (0, 1)
        require(0 <= first < last, "optim.decay", self.decay, "the earlier step must come first")
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1)")
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be positive")
        require(
            self.most_skipped >= 0, "optim.most_skipped", self.most_skipped, "must not be negative"
        )
        require_one("optim.minibatches", self.minibatches)
        require_one("optim.microbatch", self.microbatch)
        require(self.row_tokens >= 0, "optim.row_tokens", self.row_tokens, "must not be negative")

    def check_update(self, completions: int) -> None:
        """Raises UserError where an update of so many completions leaves a microbatch unfilled.

        With row_tokens the number of rows depends on lengths, and the last one may be.
        """
        require(
            self.row_tokens > 0 or completions % self.microbatch == 0,
            "optim.microbatch",
            self.microbatch,
            f"must divide the {completions} completions of an update",
        )
