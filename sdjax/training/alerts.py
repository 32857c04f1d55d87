"""Warnings and alarms: a step that teaches nothing, skipped updates, and what training costs.

Self-distillation may cost words of doubt first and out-of-domain scores next
(arXiv:2603.24472); `check_alarms` compares evaluations to see both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax import config
from sdjax.errors import UserError
from sdjax.objectives import credits
from sdjax.records import Group, TeacherPrompt
from sdjax.teacher import contexts, reprompt


@dataclass(frozen=True, kw_only=True)
class AlarmOutcome:
    """What an evaluation adds to the logs, and whether the run ends."""

    metrics: dict[str, float]
    warnings: dict[str, str]
    """A line for each alarm, by its kind."""
    ends_run: bool
    teacher_off: bool = False
    """Whether the run goes on without its teacher."""


def has_signal(group: Group, cfg: config.Train) -> bool:
    """Returns whether the loss has a gradient on a group.

    The policy part needs rewards that differ, before a penalty for length, as in DAPO. A completion
    alone in its group needs a reward, because that is its advantage. The distillation needs a
    teacher who knows more than the student. With reprompt.regenerate that is not known yet, so a
    group with a demonstration counts.
    """
    rewards = [grade.reward for grade in group.grades]
    differ = len(set(rewards)) > 1 or (len(rewards) == 1 and any(rewards))
    if cfg.loss.distillation < 1 and (differ or credits.get(cfg.policy.credit).dense):
        return True
    return cfg.loss.distillation > 0 and contexts.can_teach(group, contexts.used(cfg))


def warnings(
    groups: Sequence[Group], reprompts: Sequence[Sequence[TeacherPrompt]] | None, cfg: config.Train
) -> dict[str, str]:
    """Returns a line with likely causes and remedies for each kind of problem of a step.

    The kind "masked" says that no completion is distilled. The kind "flat" says that the rewards
    of every group are equal; it is left out of a step that is masked.
    """
    if reprompts is not None and not any(r.distilled for of in reprompts for r in of):
        return {"masked": f"every completion is masked: {_why_masked(groups, reprompts, cfg)}"}
    rewards = [{grade.reward for grade in group.grades} for group in groups]
    if cfg.loss.distillation < 1 and credits.get(cfg.policy.credit).dense:
        return {}
    if cfg.rollout.group_size > 1 and all(len(of_group) == 1 for of_group in rewards):
        return {"flat": f"rewards are flat, equal within every group: {_why_flat(groups)}"}
    return {}


def no_gradient(metrics: Mapping[str, float], *, distilled: bool) -> dict[str, str]:
    """Returns a line of the kind "zero" for a step whose gradient or divergence is exactly 0.

    `distilled` tells whether a teacher taught completions of the step.
    """
    if distilled and metrics.get("distill/divergence") == 0:
        return {
            "zero": "distill/divergence is exactly 0: teacher and student read or know the same; "
            "see reprompt in rollouts.jsonl, reprompt.template and teacher.kind"
        }
    if metrics["optim/grad_norm"] == 0:
        return {"zero": "optim/grad_norm is exactly 0: nothing is learned; see rollouts.jsonl"}
    return {}


def check_gap(metrics: Mapping[str, float], server: config.Server) -> None:
    """Raises UserError where a server sampled from other weights than the trainer's.

    `metrics` are those of a step.
    """
    gap, limit = metrics["sampler/abs_gap"], server.gap_limit
    # "not <=" is also true of NaN.
    if server.url is not None and limit is not None and not gap <= limit:
        raise UserError(
            f"{server.url}: its log-probabilities differ from the trainer's by {gap:.3g} nats per "
            "token: let it serve the model of model.path at the run's temperature, or raise "
            f"rollout.server.max_gap ({limit:g})"
        )


def skipped_updates(skipped: Sequence[bool], remedy: str) -> dict[str, str]:
    """Returns a line of the kind "skipped" for updates of which some were skipped."""
    count = f"{sum(skipped)} of {len(skipped)} updates skipped"
    return {"skipped": f"{count}: loss or gradient not finite ({remedy})"}


def check_alarms(history: Sequence[Mapping[str, Any]], cfg: config.Alarm) -> AlarmOutcome:
    """Compares the last evaluation of a run with its first.

    The metric of a kind is 1 - last / first, of the set where it is largest. A figure that is 0 in
    the first evaluation, or missing in one, has no such share. `history` has evaluations as
    evaluation.to_dict gives them; without any there are neither metrics nor alarms.
    """
    if not history:
        return AlarmOutcome(metrics={}, warnings={}, ends_run=False)
    first, last = history[0], history[-1]
    sets = {"held-out": (first, last)}
    for name, start_figures in first.get("out_of_domain", {}).items():
        sets[name] = (start_figures, last["out_of_domain"][name])
    rates = {name: (_rate(start), _rate(end)) for name, (start, end) in sets.items()}
    scores = {n: (_score(start), _score(end)) for n, (start, end) in [*sets.items()][1:]}
    forks = {
        n: (_forks(a), _forks(b)) for n, (a, b) in sets.items() if "forks" in a and "forks" in b
    }
    metrics, alarms = {}, {}
    for kind, of_sets, most, unit in (
        ("epistemic", rates, cfg.epistemic_drop, "epistemic words per 1,000 tokens"),
        ("ood", scores, cfg.ood_drop, "the out-of-domain score"),
        ("fork", forks, cfg.fork_drop, "the fork rate"),
    ):
        drops = {name: 1 - end / start for name, (start, end) in of_sets.items() if start > 0}
        if not drops:
            continue
        worst = max(drops, key=drops.__getitem__)
        metrics[f"alarm/{kind}_drop"] = drops[worst]
        if 0 < most <= drops[worst]:
            start, end = of_sets[worst]
            alarms[f"{kind}_drop"] = (
                f"alarm: {unit} fell by {drops[worst]:.0%} from the start, {start:.3g} to "
                f"{end:.3g} ({worst}); alarm.{kind}_drop is {most:g}"
            )
    return AlarmOutcome(
        metrics=metrics | {"alarm/raised": float(bool(alarms))},
        warnings=alarms,
        ends_run=cfg.stop and bool(alarms),
        teacher_off=cfg.teacher_off and bool(alarms),
    )


def _rate(figures: Mapping[str, Any]) -> float:
    """Returns the epistemic words per 1,000 tokens of a set."""
    return float(figures["epistemic"]["per_1000_tokens"])


def _forks(figures: Mapping[str, Any]) -> float:
    """Returns the fork rate of a set."""
    return float(figures["forks"]["rate"])


def _score(figures: Mapping[str, Any]) -> float:
    """Returns the avg@k of a set."""
    ((_, estimate),) = ((k, v) for k, v in figures["accuracy"].items() if k.startswith("avg@"))
    return float(estimate["value"])


def _why_flat(groups: Sequence[Group]) -> str:
    """Returns the likely cause of flat rewards, and a remedy."""
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
    """Returns the likely cause of a step without distillation, and a remedy."""
    section = next(iter(contexts.used(cfg).values()))
    if any(r.truncated for of in reprompts for r in of):
        return f"reprompt.max_tokens is {section.max_tokens}, too few for the reprompts; raise it"
    if section.regenerate and any(reprompt.can_teach(group, section) for group in groups):
        return (
            "no answer given with a demonstration in sight was right; set reprompt.regenerate to "
            "False or raise rollout.max_completion_tokens"
        )
    if section.demonstration == "solution":
        return "the data has no solutions; set reprompt.demonstration to 'random'"
    if section.demonstration == "none":
        return "the grader gave no feedback; set reprompt.demonstration to 'random'"
    if section.demonstration == "majority" and not any(map(reprompt.majority, groups)):
        return "no grade has an answer to vote with; set reprompt.demonstration to 'random'"
    best = max(grade.reward for group in groups for grade in group.grades)
    if best < section.success_threshold:
        return (
            f"{_cut_off(groups)}the best reward is {best:.4g}, under reprompt.success_threshold "
            f"{section.success_threshold:.4g}; take easier examples, raise rollout.group_size, "
            "lower the threshold, or set reprompt.feedback to True where the grader gives any"
        )
    return (
        "those that succeeded are alone or have nothing to show; raise rollout.group_size, set "
        "reprompt.own_success to True or reprompt.strip_thinking to False"
    )


def _cut_off(groups: Sequence[Group]) -> str:
    """Returns the first cause to name if most completions are cut off, else ""."""
    share = np.mean([c.finish == "length" for group in groups for c in group.completions])
    if share <= 0.5:
        return ""
    return f"{share:.0%} of completions are cut off (raise rollout.max_completion_tokens); "
