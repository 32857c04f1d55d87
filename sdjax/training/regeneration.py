"""The model answers again with a demonstration in sight; the teachers then read that answer.

Condition (4) of arXiv:2603.24472 section 3 (regeneration-conditioned), in a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from sdjax import config
from sdjax.records import Group, TeacherPrompt
from sdjax.rollout.collect import collect
from sdjax.rollout.interface import SamplingRequest
from sdjax.tasks import Task
from sdjax.teacher import reprompt
from sdjax.training import loaded_model

# Beside the completions of a step, which fold in small numbers.
NOISE = 2**32 - 1


def regenerated(
    groups: Sequence[Group],
    guided: Sequence[Sequence[TeacherPrompt]],
    shop: loaded_model.LoadedModel,
    weights: Any,
    task: Task,
    cfg: config.Train,
    *,
    root: jax.Array,
    step: int,
) -> tuple[Sequence[Sequence[TeacherPrompt]], dict[str, float]]:
    """Returns reprompts that show each group its regenerated answer, and the share that is right.

    `guided` are the reprompts that show a group's own demonstrations. A group answers its first
    one that does; where it has none, or that answer is wrong, there is no demonstration.
    """
    asked = [_first_demonstrated(of_group) for of_group in guided]
    shown = [seen for seen in asked if seen is not None]
    if not shown:
        return guided, {}
    # Always one prompt a group, so that every step has the same programs; and a group draws with a
    # noise of its own, whichever others are asked.
    answers = collect(
        shop.sampler,
        weights,
        SamplingRequest(
            prompts=[(seen or shown[0]).tokens for seen in asked],
            group_size=1,
            sampling=cfg.rollout,
            key=jax.random.fold_in(jax.random.fold_in(root, step), NOISE),
        ),
        examples=[group.example for group in groups],
        tokenizer=shop.tokenizer,
        grade_many=task.grade_many,
    )
    threshold = cfg.reprompt.success_threshold
    right = [
        seen is not None and bool(reprompt.successes(answer, threshold))
        for seen, answer in zip(asked, answers, strict=True)
    ]
    told = [
        _with_solution(group, answer.completions[0].text if good else None)
        for group, answer, good in zip(groups, answers, right, strict=True)
    ]
    made = reprompt.build(
        told,
        shop.tokenizer,
        replace(cfg.reprompt, demonstration="solution", regenerate=False),
        enable_thinking=cfg.rollout.enable_thinking,
        seed=cfg.seed,
        step=step,
    )
    named = [[_named(seen) for seen in of_group] for of_group in made]
    return named, {"reprompt/regenerated": sum(right) / len(shown)}


def _first_demonstrated(reprompts: Sequence[TeacherPrompt]) -> TeacherPrompt | None:
    return next((seen for seen in reprompts if seen.demonstration is not None), None)


def _with_solution(group: Group, text: str | None) -> Group:
    return replace(group, example=replace(group.example, solution=text))


def _named(seen: TeacherPrompt) -> TeacherPrompt:
    return seen if seen.demonstration is None else replace(seen, demonstration="regenerated")
