"""A task in which only some questions have rewards that differ, and a run on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sums import job

from sdjax import config
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.records import Example, Grade
from sdjax.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Letters(config.TaskConfig):
    """Every `mixed_every`-th question rewards an even number of letters, the others never do."""

    held_out: int = 2
    mixed_every: int = 2


def load(cfg: Letters, data: config.Data) -> Task:
    def example(i: int) -> Example:
        content = f"Question {i:04}"
        mixed = str(cfg.mixed_every > 0 and i % cfg.mixed_every == 0)
        message = {"role": "user", "content": content}
        return Example(id=str(i), messages=(message,), answer=mixed, task="letters")

    def grade(attempts: Sequence[Attempt]) -> list[Grade]:
        right = [a.answer == "True" and sum(map(ord, a.text)) % 2 == 0 for a in attempts]
        return [Grade(reward=float(r), correct=r) for r in right]

    train_set = [example(i) for i in range(100)]
    return Task(
        name="letters", train=train_set, held_out=[example(100), example(101)], grader=grade
    )


METHODS = {
    "grpo": {"loss": {"distillation": 0.0}},
    "sdpo": {"reprompt": {"max_tokens": 400, "success_threshold": 0.5}},
}


def of(
    model: Path, out: Path, method: str, rounds: int, mixed_every: int = 2, **changes
) -> config.Train:
    """Returns a run of a method that samples up to `rounds` further rounds per step."""
    return job(
        model,
        out,
        task=Letters(mixed_every=mixed_every),
        rollout={"dynamic_sampling_rounds": rounds},
        eval={"every": 0, "k": 1, "examples": 2, "batch": 2, "max_completion_tokens": 12},
        **METHODS[method],
        **changes,
    )
