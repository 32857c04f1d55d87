"""Puts the rewards of a config over the grader of a task.

The task's grader decides what is correct, what the teacher reads as feedback, and what votes. The
rewards decide what trains. A reward that returns a Grade decides all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders.own import Failures, Judgement, OwnFunction, graded
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.records import Grade

Reward = Callable[[Sequence[Attempt], Failures], list[Judgement]]


def ungraded(attempts: Sequence[Attempt]) -> list[Grade]:
    """Stands for the grader of a task whose rows have no answers; raises UserError."""
    raise UserError("the rows have no answers: name what grades them with task.reward")


def with_rewards(grader: Grader, cfg: config.TaskConfig) -> Grader:
    """Returns the grader of a task under the rewards of its config.

    Raises UserError for a reward that cannot be loaded, or for a task that nothing grades.
    """
    weights = cfg.all_rewards()
    if grader is ungraded and (not weights or "grader" in weights):
        ungraded([])
    if not weights:
        return grader
    where = "task.reward" if cfg.reward else "task.rewards"
    rewards = {name: _reward(name, cfg, where) for name in weights if name != "grader"}
    return RewardedGrader(
        grader=None if grader is ungraded else grader,
        rewards=rewards,
        weights=weights,
        failures=Failures(stop=cfg.on_reward_error == "stop"),
    )


def _reward(name: str, cfg: config.TaskConfig, where: str) -> Reward:
    if name == "judge":
        from sdjax.tasks.served_judge import ServedJudge  # which loads an HTTP client

        return ServedJudge(cfg.judge)
    return OwnFunction(name, where, cfg.reward_timeout_s)


@dataclass(frozen=True, kw_only=True)
class RewardedGrader:
    """A grader whose rewards are those of a config; `grader` is the task's, None without answers.

    `details["rewards"]` holds each reward by name, None where it does not apply.
    """

    grader: Grader | None
    rewards: dict[str, Reward]
    weights: dict[str, float]
    failures: Failures

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        """Returns one grade for each attempt, in order."""
        own = [None] * len(attempts) if self.grader is None else self.grader(attempts)
        by_name = {name: reward(attempts, self.failures) for name, reward in self.rewards.items()}
        return [
            self._grade(base, {name: found[i] for name, found in by_name.items()})
            for i, base in enumerate(own)
        ]

    def _grade(self, base: Grade | None, judgements: dict[str, Judgement]) -> Grade:
        values = {
            name: base.reward if name == "grader" and base else judgements[name].value
            for name in self.weights
        }
        parts = (self.weights[n] * value for n, value in values.items() if value is not None)
        reward = sum(parts, start=0.0)
        failed = {name: j.failed for name, j in judgements.items() if j.failed}
        details: dict[str, Any] = dict(base.details) if base else {}
        for judgement in judgements.values():
            details |= judgement.details | (judgement.grade.details if judgement.grade else {})
        details |= {"rewards": values} | ({"failed": failed} if failed else {})
        decides = next((j.grade for j in judgements.values() if j.grade), base)
        if decides is None:
            decides = graded(Judgement(value=reward, failed=", ".join(failed)))
        return replace(decides, reward=reward, details=details)
