"""The jobs that ask what a model imitates: finetuning on given conversations. No jax.

The docstring under each field is what `--help` prints. sdjax.config has them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdjax.log_sections import Log
from sdjax.sections import (
    Checkpoint,
    Data,
    Eval,
    Mesh,
    Model,
    Optim,
    Task,
    require,
    require_names,
)


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Finetunes a model on conversations: cross-entropy on what the assistant says."""

    out: str
    """Run directory: resolved config, metrics, answers, checkpoints, exported model."""
    source: str
    """Conversations, as sdjax/data/sources.py describes a source. A row has messages, a list of
    {"role", "content"}, or prompt and completion."""
    turns: Literal["last", "all"] = "last"
    """Which turns of the assistant are learned. all: each in a context of its own, as the model
    meets it when it answers."""
    max_tokens: int = 2048
    """Longest conversation after the chat template; what data.on_overlong does to a longer one."""
    batch: int = 64
    """Conversations an update. The loss is the mean over their learned tokens."""
    epochs: float = 1.0
    """How often each conversation is seen."""
    steps: int = 0
    """Updates; 0: as many as `epochs` take."""
    log_every: int = 10
    """Updates from one line of metrics to the next: each is a mean over them."""
    task: Task | None = None
    """One whose held-out examples are evaluated before, during and after; None evaluates nothing.
    Give it in the file: on the command line only its fields can be changed."""
    out_of_domain: dict[str, Task] = field(default_factory=dict)
    """Other tasks whose held-out examples are evaluated too, each under the name that its figures
    bear: metrics ood/NAME/..."""
    max_prompt_tokens: int = 1024
    """Longest prompt of an evaluation; examples with a longer one are left out, counted."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`; without one, start there."""
    profile: str | None = None
    """Directory for a profiler trace of the two updates after the first, which compiles."""
    chunk_tokens: int = 2048
    """Positions whose logits exist at one time; changes memory and speed, not results."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        require_names("out_of_domain", self.out_of_domain)
        for name in ("max_tokens", "batch", "log_every", "max_prompt_tokens", "chunk_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.steps >= 0, "steps", self.steps, "must not be negative; 0: as epochs take")
        require(self.epochs > 0, "epochs", self.epochs, "must be positive")
        require(
            self.task is not None or not self.out_of_domain,
            "out_of_domain",
            sorted(self.out_of_domain),
            "needs a task beside it, the one in domain",
        )
        require(
            self.optim.minibatches == 1,
            "optim.minibatches",
            self.optim.minibatches,
            "must be 1: every update has conversations of its own",
        )
        self.optim.check_update(self.batch)
