"""The section of tasks that lm-evaluation-harness defines and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Tasks of lm-evaluation-harness (`pip install 'sdjax[lm-eval]'`), such as ifeval, scored by
    its own rules on the local sampler."""

    tasks: tuple[str, ...] = ()
    """Names of tasks or groups that `lm_eval ls tasks` lists, or YAML files of your own tasks.
    Empty scores none."""
    limit: int = 0
    """Documents of each task, taken from the first; 0 uses all."""
    fewshot: int | None = None
    """Examples before each question; None takes the number of the task."""
    chat_template: bool = True
    """Write prompts with the model's chat template. False is for base models."""
    sampling: Literal["task", "eval"] = "task"
    """Where temperature, top_p, top_k and the longest completion come from: the task, or `eval`.
    A model that thinks needs eval, because most tasks leave no room for thoughts."""

    def __post_init__(self) -> None:
        for name in self.tasks:
            require(bool(name.strip()), "lm_eval.tasks", self.tasks, "a name is empty")
        repeated = len(set(self.tasks)) < len(self.tasks)
        require(not repeated, "lm_eval.tasks", self.tasks, "name each task once")
        require(self.limit >= 0, "lm_eval.limit", self.limit, "must not be negative; 0 uses all")
        require(
            self.fewshot is None or self.fewshot >= 0,
            "lm_eval.fewshot",
            self.fewshot,
            "must not be negative",
        )
