"""Finds the contexts that a training's teacher reads, by name, and writes their reprompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sdjax import config
from sdjax.config.sections.target import (
    PLAIN,
    REFERENCE,
    SOLUTION,
    UNRELATED,
    WRONG,
)
from sdjax.errors import UserError
from sdjax.objectives import credits, targets
from sdjax.records import Group, TeacherPrompt
from sdjax.teacher import reprompt


def known(cfg: config.Train) -> dict[str, config.Reprompt]:
    """Returns every context that a target can name, those of the config before the built-in ones.

    The built-in ones differ from `reprompt` in one thing each, named by the context.
    """
    base = cfg.reprompt
    shown = "random" if base.demonstration in ("solution", "none") else base.demonstration
    by_reward = "random" if shown == "majority" else shown
    of_step = replace(base, demonstration=shown, regenerate=False)
    return {
        SOLUTION: base,
        UNRELATED: replace(of_step, of="another_question"),
        WRONG: replace(of_step, demonstration=by_reward, sibling="failure"),
        REFERENCE: replace(base, question=False),
        PLAIN: config.Plain(max_tokens=base.max_tokens, beyond_context=base.beyond_context),
        "feedback": config.Feedback(max_tokens=base.max_tokens, beyond_context=base.beyond_context),
        **cfg.contexts,
    }


def used(cfg: config.Train) -> dict[str, config.Reprompt]:
    """Returns the contexts that the loss reads, those of the target first; {} without a teacher.

    Raises UserError for a name that is no context, and for a context that shows nothing.
    """
    share = cfg.loss.distillation
    of_target = targets.contexts(cfg.target) if share > 0 else ()
    of_credit = credits.get(cfg.policy.credit).contexts if share < 1 else ()
    every, out = known(cfg), {}
    for name in dict.fromkeys(of_target + of_credit):
        if name not in every:
            raise UserError(
                f"target names {name!r}: must be one of {', '.join(every)}; or add it to contexts"
            )
        out[name] = every[name]
        out[name].check_teaches(f"contexts.{name}" if name in cfg.contexts else "reprompt")
    return out


def build(
    groups: Sequence[Group],
    tokenizer: reprompt.PromptTokenizer,
    contexts: Mapping[str, config.Reprompt],
    *,
    enable_thinking: bool | None,
    seed: int,
    step: int,
) -> dict[str, list[list[TeacherPrompt]]]:
    """Returns the reprompt of each completion of each group, by context.

    Args:
        groups: The completions and their grades.
        tokenizer: Renders conversations into tokens.
        contexts: Those that are used.
        enable_thinking: The student's option of the chat template; None leaves it out.
        seed: The seed of the run.
        step: The number of the training step.
    """
    return {
        name: reprompt.build(
            groups, tokenizer, cfg, enable_thinking=enable_thinking, seed=seed, step=step
        )
        for name, cfg in contexts.items()
    }


def can_teach(group: Group, contexts: Mapping[str, config.Reprompt]) -> bool:
    """Returns whether every context can teach a completion of the group."""
    return bool(contexts) and all(reprompt.can_teach(group, cfg) for cfg in contexts.values())
