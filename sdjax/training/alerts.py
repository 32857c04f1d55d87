"""Whether a step's groups have anything to learn from, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdjax import config
from sdjax.records import Group, TeacherPrompt
from sdjax.teacher import reprompt


def has_signal(group: Group, cfg: config.Train) -> bool:
    """Returns whether the loss has a gradient on a group.

    The policy part needs rewards that differ (before a penalty for length, as in DAPO), the
    distillation a teacher who knows more than the student. With reprompt.regenerate it is not yet
    known whether that one will: a demonstration counts, whatever will be made of it.
    """
    if cfg.loss.distillation < 1 and not _is_flat(group):
        return True
    return cfg.loss.distillation > 0 and reprompt.can_teach(group, cfg.reprompt)


def warnings(
    groups: Sequence[Group], reprompts: Sequence[Sequence[TeacherPrompt]] | None, cfg: config.Train
) -> dict[str, str]:
    """Returns what is wrong with a step, by kind: a line that names likely causes and remedies.

    masked   no completion is distilled
    flat     the rewards of every group are equal; not said where "masked" says as much
    """
    if reprompts is not None and not any(r.distilled for of in reprompts for r in of):
        return {"masked": f"every completion is masked: {_why_masked(groups, reprompts, cfg)}"}
    if cfg.rollout.group_size > 1 and all(_is_flat(group) for group in groups):
        return {"flat": f"rewards are flat, equal within every group: {_why_flat(groups)}"}
    return {}


def _is_flat(group: Group) -> bool:
    return len({grade.reward for grade in group.grades}) == 1


def _why_flat(groups: Sequence[Group]) -> str:
    if all(grade.correct for group in groups for grade in group.grades):
        return "all are correct; take harder examples or raise rollout.temperature"
    return (
        f"{_cut_off(groups)}the task may be too hard or its grader may not find the answers (see "
        "rollouts.jsonl); take easier examples, raise rollout.group_size or "
        "rollout.dynamic_sampling_rounds"
    )


def _why_masked(
    groups: Sequence[Group], reprompts: Sequence[Sequence[TeacherPrompt]], cfg: config.Train
) -> str:
    asked = cfg.reprompt
    if any(r.truncated for of in reprompts for r in of):
        return f"reprompt.max_tokens is {asked.max_tokens}, too few for the reprompts; raise it"
    if asked.regenerate and any(reprompt.can_teach(group, asked) for group in groups):
        return (
            "no answer given with a demonstration in sight was right; set reprompt.regenerate to "
            "False or raise rollout.max_completion_tokens"
        )
    if asked.demonstration == "solution":
        return "the data has no solutions; set reprompt.demonstration to 'random'"
    if asked.demonstration == "none":
        return "the grader gave no feedback; set reprompt.demonstration to 'random'"
    best = max(grade.reward for group in groups for grade in group.grades)
    if best < asked.success_threshold:
        return (
            f"{_cut_off(groups)}the best reward is {best:.4g}, under reprompt.success_threshold "
            f"{asked.success_threshold:.4g}; take easier examples, raise rollout.group_size, lower "
            "the threshold, or set reprompt.feedback to True where the grader gives any"
        )
    return (
        "those that succeeded are alone or have nothing to show; raise rollout.group_size, set "
        "reprompt.own_success to True or reprompt.strip_thinking to False"
    )


def _cut_off(groups: Sequence[Group]) -> str:
    """Returns the cause that comes first where most completions have it, else ""."""
    share = np.mean([c.finish == "length" for group in groups for c in group.completions])
    if share <= 0.5:
        return ""
    return f"{share:.0%} of completions are cut off (raise rollout.max_completion_tokens); "
