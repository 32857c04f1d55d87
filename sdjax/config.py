"""What a config file can ask for: the job configs, and by the same name every section they hold.

A config file is Python that binds `config` to one of these jobs. The docstring under each field
is what `--help` prints. No jax.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from sdjax.errors import UserError
from sdjax.sections import (
    Checkpoint,
    Data,
    Eval,
    Log,
    Loss,
    Mesh,
    Model,
    Optim,
    Policy,
    Reprompt,
    Rollout,
    Sampling,
    Server,
    Task,
    Teacher,
    require,
)

__all__ = [
    "Checkpoint",
    "Data",
    "Eval",
    "Evaluate",
    "Export",
    "Job",
    "Log",
    "Loss",
    "Mesh",
    "Model",
    "Optim",
    "Policy",
    "Prepare",
    "Reprompt",
    "Rollout",
    "Sampling",
    "Server",
    "Task",
    "Teacher",
    "Train",
    "UserError",
    "require",
    "to_dict",
]


def _check_names(tasks: dict[str, Task]) -> None:
    for name in tasks:
        require(
            re.fullmatch(r"\w+", name) is not None,
            "out_of_domain",
            name,
            "names must be letters, digits and _",
        )


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model on its own words: SDPO, GRPO or a blend."""

    out: str
    """Run directory: resolved config, metrics, rollouts, checkpoints, exported model."""
    task: Task
    out_of_domain: dict[str, Task] = field(default_factory=dict)
    """Other tasks whose held-out examples are evaluated too, each under the name that its figures
    bear: metrics ood/NAME/..."""
    steps: int = 100
    seed: int = 0
    """Of sampling."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`; without one, start there."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    rollout: Rollout = field(default_factory=Rollout)
    reprompt: Reprompt = field(default_factory=Reprompt)
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    policy: Policy = field(default_factory=Policy)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        _check_names(self.out_of_domain)
        require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        require(
            self.rollout.prompts_per_step % self.optim.minibatches == 0,
            "optim.minibatches",
            self.optim.minibatches,
            f"must divide rollout.prompts_per_step ({self.rollout.prompts_per_step})",
        )
        completions = self.rollout.prompts_per_step * self.rollout.group_size
        update = completions // self.optim.minibatches
        require(
            update % self.optim.microbatch == 0,
            "optim.microbatch",
            self.optim.microbatch,
            f"must divide the {update} completions of an update",
        )
        require(
            self.loss.distillation > 0
            or self.rollout.group_size >= 2
            or self.rollout.dynamic_sampling_rounds == 0,
            "rollout.dynamic_sampling_rounds",
            self.rollout.dynamic_sampling_rounds,
            "must be 0 with rollout.group_size 1: no group's rewards can differ",
        )
        require(
            self.loss.distillation == 0
            or self.reprompt.demonstration != "none"
            or self.reprompt.feedback,
            "reprompt.demonstration",
            self.reprompt.demonstration,
            "needs reprompt.feedback, or no teacher knows more than the student",
        )
        if self.loss.distillation > 0 and self.reprompt.demonstration not in ("solution", "none"):
            require(
                self.rollout.group_size >= 2 or self.reprompt.own_success or self.reprompt.feedback,
                "rollout.group_size",
                self.rollout.group_size,
                "needs at least 2, or no completion has a sibling to learn from",
            )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a model on the held-out examples of a task, and of others."""

    out: str
    """Directory of answers.jsonl, scores.json and scores.md."""
    task: Task
    """In domain."""
    out_of_domain: dict[str, Task] = field(default_factory=dict)
    """Other tasks, each under the name that its figures bear."""
    resume: bool = False
    """Go on after the last batch in `out`; without one, start there."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    max_prompt_tokens: int = 1024
    """Longest prompt after the chat template; examples with a longer one are left out, counted."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    server: Server = field(default_factory=Server)
    """One that serves the same model."""

    def __post_init__(self) -> None:
        _check_names(self.out_of_domain)
        require(
            self.server.reload == "none",
            "server.reload",
            self.server.reload,
            "must be none: an evaluation scores the weights that the server has",
        )
        require(
            self.max_prompt_tokens >= 1,
            "max_prompt_tokens",
            self.max_prompt_tokens,
            "must be at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a training checkpoint as a Hugging Face folder."""

    run: str
    """Run directory of a training."""
    out: str
    """Folder to write."""
    step: int | None = None
    """Which checkpoint; None is the newest."""
    mesh: Mesh = field(default_factory=Mesh)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Builds a TFDS data set (ArrayRecord) from the hub or a file."""

    name: str
    """Of the data set."""
    splits: dict[str, str]
    """For each split its source, as sdjax/data/sources.py describes them."""
    out: str = "data"
    """TFDS data directory; tasks then read OUT/NAME/1.0.0:SPLIT."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None,
            "name",
            self.name,
            "must be lower-case letters, digits and _",
        )
        require(bool(self.splits), "splits", self.splits, "needs at least one split")


Job = Train | Evaluate | Export | Prepare


def to_dict(config: object) -> dict:
    """Returns a config as nested plain values, each section with the name of its class."""
    out: dict = {"class": type(config).__name__}
    return out | {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return to_dict(value) if dataclasses.is_dataclass(value) else value
