"""The config of the plan job. No jax."""

from __future__ import annotations

from dataclasses import dataclass

from sdjax.sections import require


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Says whether a training fits a slice, how long its steps take and what they cost."""

    train: tuple[str, ...]
    """Config files of trainings, or of benches, which measure one's step. Of their models only
    config.json is read."""
    change: tuple[str, ...] = ()
    """Fields of them to change, each NAME=VALUE, such as optim.microbatch=128 mesh.tensor=2."""
    out: str = "runs/plan"
    """Directory of plan.json and plan.md."""
    topology: tuple[str, ...] = ("v5p:4x4x4",)
    """CHIP:SHAPE, each for every training. TPU v4, v5e, v5p, v6e with the slice's shape (v6e:8x8),
    or a GPU with their number: a100-40, a100-80, h100, h200 (h100:8). Programs for TPUs are
    compiled, here and now, and need no chip; for GPUs everything is arithmetic."""
    slices: int = 1
    """Slices of that shape, joined by the data centre's network."""
    search: bool = False
    """Look for the smallest slice of this chip and, on it, the mesh, microbatch and slots whose
    step is the shortest. By arithmetic; the best are compiled. `topology` then names the chip
    alone (v5p), or the largest slice that may be taken."""
    most_step_s: float = 0.0
    """search: seconds that a step may take; 0: any number."""
    compile: bool = True
    """False: TPUs by arithmetic alone too, in a second and not in minutes."""
    every_layer: bool = False
    """Compile prefill and decode with all layers, which takes many minutes. False: with a few, and
    again with twice as many; a layer more adds what those add."""
    price: float = 0.0
    """Dollars for one hour of one chip; 0 counts chip-hours only."""
    prompt_tokens: int = 256
    """Mean prompt, for the estimate of seconds; memory is always that of the longest."""
    completion_tokens: int = 0
    """Mean completion; 0: half of rollout.max_completion_tokens, in a bench all of it."""

    def __post_init__(self) -> None:
        require(bool(self.train), "train", self.train, "needs a config file")
        require(bool(self.topology), "topology", self.topology, "needs one, such as v5p:4x4x4")
        require(self.slices >= 1, "slices", self.slices, "must be at least 1")
        require(self.price >= 0, "price", self.price, "must not be negative")
        require(self.most_step_s >= 0, "most_step_s", self.most_step_s, "must be positive, or 0")
        require(self.prompt_tokens >= 1, "prompt_tokens", self.prompt_tokens, "must be at least 1")
        require(
            self.completion_tokens >= 0,
            "completion_tokens",
            self.completion_tokens,
            "must be at least 1, or 0: half of the longest",
        )
        for change in self.change:
            require("=" in change, "change", change, "must be NAME=VALUE")
