"""The section of the optimizer: AdamW, and how completions become updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_finite, require_one


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW, and how the completions of a step become updates."""

    lr: float = 1e-5
    """Learning rate after the warm-up."""
    warmup_steps: int = 10
    """Number of training steps, not updates, in the linear warm-up."""
    warmup_from: Literal["first", "zero"] = "first"
    """Learning rate of the first step. first: lr / warmup_steps. zero: 0, as in the reference."""
    decay: tuple[int, int] | None = None
    """(first, last): between these steps lr falls linearly to 0 and then stays at 0. None keeps it
    constant."""
    beta1: float = 0.9
    """AdamW's decay rate of the mean of gradients."""
    beta2: float = 0.999
    """AdamW's decay rate of the mean of squared gradients."""
    eps: float = 1e-8
    """AdamW's constant in the denominator."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Upper bound of the gradient's global norm."""
    most_skipped: int = 5
    """An update whose loss or gradient is not finite is skipped. This many skipped updates in a row
    end the run, as counted at the end of a step; 0 never ends it before its last step. A training
    saves the last one's batch and state for --replay. A run whose updates are all skipped exports
    nothing."""
    minibatches: int = 1
    """Updates per step; the groups of a step are split into this many equal parts."""
    microbatch: int = 8
    """Rows whose activations exist at the same time, over all devices. Changes memory, not results.
    A row is one completion after its context, or several completions with row_tokens."""
    row_tokens: int = 0
    """Packs completions, each with its context, into rows of up to this many tokens. Tokens are
    counted in the longer of the student's and the teacher's row. A longer completion raises the
    limit for its update. Changes time and memory, not results. 0 gives every completion its own
    row, padded to the longest. Use it where lengths differ, with about one to two times the longest
    length. Attention masks the tokens of other completions but does not skip them, so its time
    grows with the row."""

    def __post_init__(self) -> None:
        require_finite(self, "optim.")
        require(self.lr >= 0, "optim.lr", self.lr, "must not be negative")
        require(
            self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must not be negative"
        )
        first, last = self.decay or (0, 1)
        require(0 <= first < last, "optim.decay", self.decay, "the earlier step must come first")
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "must be positive")
        require(
            self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative"
        )
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be positive")
        require(
            self.most_skipped >= 0, "optim.most_skipped", self.most_skipped, "must not be negative"
        )
        require_one("optim.minibatches", self.minibatches)
        require_one("optim.microbatch", self.microbatch)
        require(self.row_tokens >= 0, "optim.row_tokens", self.row_tokens, "must not be negative")

    def check_update(self, completions: int) -> None:
        """Raises UserError if an update of this many completions leaves a microbatch unfilled.

        With row_tokens the number of rows depends on lengths, so the last microbatch may be
        unfilled.
        """
        require(
            self.row_tokens > 0 or completions % self.microbatch == 0,
            "optim.microbatch",
            self.microbatch,
            f"must divide the {completions} completions of an update",
        )
