"""Regeneration: the model answers with a demonstration in its prompt; teachers read that answer.

This is condition (4) of arXiv:2603.24472 section 3 (regeneration-conditioned), used in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from sdjax.config.sections.target import SOLUTION
from sdjax.records import Group, TeacherPrompt
from sdjax.rollout.collect import collect
from sdjax.rollout.interface import SamplingRequest
from sdjax.teacher import reprompt
from sdjax.training.host_step import StepInputs, StepSetup

# No completion draws with this number, because those of a step fold in small ones.
NOISE = 2**32 - 1


def regenerate(setup: StepSetup, weights: Any, inputs: StepInputs, step: int) -> StepInputs:
    """Returns the inputs with reprompts that show each group its regenerated answer.

    Each group answers the first of its reprompts that shows a demonstration. The new answer takes
    the place of the demonstration if it is right. If it is wrong, or the group has no such
    reprompt, its teacher sees no demonstration. The metric is the share of right new answers.
    `weights` are the sampler's.
    """
    cfg, model, groups = setup.cfg, setup.model, inputs.sampled.groups
    guided = [_first_demonstrated(of_group) for of_group in inputs.contexts[SOLUTION]]
    prompts = [seen for seen in guided if seen is not None]
    if not prompts:
        return inputs
    # Always one prompt per group, so that every step runs the same programs. Each group also draws
    # with its own noise, whichever other groups have a demonstration.
    answers = collect(
        model.sampler,
        weights,
        SamplingRequest(
            prompts=[(seen or prompts[0]).tokens for seen in guided],
            group_size=1,
            sampling=cfg.rollout,
            key=jax.random.fold_in(jax.random.fold_in(setup.key, step), NOISE),
        ),
        examples=[group.example for group in groups],
        tokenizer=model.tokenizer,
        grade_many=setup.task.grade_many,
    )
    threshold = cfg.reprompt.success_threshold
    right = [
        seen is not None and bool(reprompt.successes(answer, threshold))
        for seen, answer in zip(guided, answers, strict=True)
    ]
    with_solutions = [
        _with_solution(group, answer.completions[0].text if is_right else None)
        for group, answer, is_right in zip(groups, answers, right, strict=True)
    ]
    reprompts = reprompt.build(
        with_solutions,
        model.tokenizer,
        replace(cfg.reprompt, demonstration="solution", regenerate=False),
        enable_thinking=cfg.rollout.enable_thinking,
        seed=cfg.seed,
        step=step,
    )
    shown = [[_named(one) for one in of_group] for of_group in reprompts]
    return replace(
        inputs,
        contexts={**inputs.contexts, SOLUTION: shown},
        metrics={"reprompt/regenerated": sum(right) / len(prompts)},
    )


def _first_demonstrated(reprompts: Sequence[TeacherPrompt]) -> TeacherPrompt | None:
    """Returns the first reprompt that shows a demonstration; None: there is none."""
    return next((seen for seen in reprompts if seen.demonstration is not None), None)


def _with_solution(group: Group, text: str | None) -> Group:
    """Returns the group with `text` as its example's solution."""
    return replace(group, example=replace(group.example, solution=text))


def _named(seen: TeacherPrompt) -> TeacherPrompt:
    """Returns the reprompt with its demonstration, if it has one, named "regenerated"."""
    return seen if seen.demonstration is None else replace(seen, demonstration="regenerated")
