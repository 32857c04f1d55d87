"""Writes what the teacher reads: the prompt with a correct solution and/or feedback added.

Pure functions on records, in three stages:

    choose    chooses the demonstrations that a completion's teacher reads
    messages  renders them, and the feedback, into the last message of the conversation
    fit       shortens them until the rendered reprompt has at most `reprompt.max_tokens` tokens

`build` runs the stages for every completion of every group.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from sdjax import config
from sdjax.analysis import accuracy
from sdjax.records import Example, Group, Message, TeacherPrompt

OPEN, CLOSE = "<think>", "</think>"

DemonstrationSource = int | Literal["solution"]
"""The origin of a demonstration: the index of a completion in its group, or the data set."""


class PromptTokenizer(Protocol):
    """The part of sdjax.tokenizer.Tokenizer that reprompts need."""

    def encode_prompt(
        self, messages: Sequence[Message], *, enable_thinking: bool | None
    ) -> np.ndarray:
        """Returns int32[P], the tokens of the chat template with its generation prompt."""
        ...

    def encode(self, text: str) -> Sequence[int] | np.ndarray:
        """Returns the tokens of plain text, without special tokens around it."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A rendered reprompt that fits, with the number of demonstrations that it shows.

    `tokens` is None if neither a demonstration nor feedback fits: the teacher then reads the plain
    prompt.
    """

    tokens: np.ndarray | None  # int32[R_i]
    demonstrations: int
    feedback_used: bool
    truncated: bool


def strip_thinking(text: str) -> str:
    """Returns the text without its thinking, as arXiv:2603.24472 does for c = s without thinking.

    It first removes every <think>…</think> and the white space after it. Then it removes all text
    up to a closing tag that is left, because some chat templates put the opening tag into the
    prompt. A thought that is never closed stays.
    """
    kept, position = [], 0
    while (start := text.find(OPEN, position)) >= 0:
        end = text.find(CLOSE, start + len(OPEN))
        if end < 0:
            break
        kept.append(text[position:start])
        position = end + len(CLOSE)
        while position < len(text) and text[position].isspace():
            position += 1
    rest = "".join(kept) + text[position:]
    _, closed, after = rest.partition(CLOSE)
    return after.lstrip() if closed else rest


def successes(group: Group, threshold: float) -> list[int]:
    """Returns the indices of the completions whose reward reaches the threshold."""
    return [i for i, grade in enumerate(group.grades) if grade.reward >= threshold]


def candidates_of(group: Group, cfg: config.Reprompt) -> list[int]:
    """Returns the indices of the completions that a context may show: of `cfg.sibling`'s kind, or
    with the answer of the majority."""
    if cfg.demonstration == "majority":
        of_kind = majority(group)
    else:
        right = successes(group, cfg.success_threshold)
        wrong = [i for i in range(len(group.completions)) if i not in right]
        of_kind = right if cfg.sibling == "success" else wrong
    return [i for i in of_kind if demonstration_text(group, i, cfg).strip()]


def majority(group: Group) -> list[int]:
    """Returns the indices of the completions with the commonest answer, by which maj@k votes.

    The first of equally common ones counts. Without any answer the result is [].
    """
    votes = [accuracy.vote(grade.details) for grade in group.grades]
    known = Counter(vote for vote in votes if vote is not None)
    if not known:
        return []
    ((best, _),) = known.most_common(1)
    return [i for i, vote in enumerate(votes) if vote == best]


def from_another(
    groups: Sequence[Group], number: int, cfg: config.Reprompt, rng: np.random.Generator
) -> str | None:
    """Returns the text of a completion of another question than that of group `number`.

    None: no other question of the step has such a completion.
    """
    own = groups[number].example.id
    others = [(g, candidates_of(g, cfg)) for g in groups if g.example.id != own]
    others = [(g, of) for g, of in others if of]
    if not others:
        return None
    group, of = others[int(rng.integers(len(others)))]
    return demonstration_text(group, of[int(rng.integers(len(of)))], cfg)


def demonstration_text(group: Group, source: DemonstrationSource, cfg: config.Reprompt) -> str:
    """Returns the text of a demonstration; "" if the data set has no solution."""
    if source == "solution":
        text = group.example.solution or ""
    else:
        text = group.completions[source].text
    return strip_thinking(text) if cfg.strip_thinking else text


def choose(
    group: Group, index: int, cfg: config.Reprompt, rng: np.random.Generator
) -> tuple[DemonstrationSource, ...]:
    """Returns the demonstrations of completion `index`: at most `cfg.demonstrations` sources.

    A blank demonstration is never chosen, because a teacher learns nothing from it. (The reference
    shows an empty solution if nothing is left after the thinking is stripped.)
    """
    if cfg.demonstration == "none":
        return ()
    if cfg.demonstration == "solution":
        return ("solution",) if demonstration_text(group, "solution", cfg).strip() else ()
    candidates = [i for i in candidates_of(group, cfg) if cfg.own_success or i != index]
    if cfg.demonstration in ("random", "majority"):
        candidates = [candidates[i] for i in rng.permutation(len(candidates))]
    elif cfg.demonstration != "first":
        sign = 1 if cfg.demonstration == "shortest" else -1
        candidates.sort(key=lambda i: sign * len(group.completions[i].tokens))
    return tuple(candidates[: cfg.demonstrations])


def available_feedback(group: Group, index: int, cfg: config.Reprompt) -> str:
    """Returns the grader's feedback on completion `index`; "" if it is blank or switched off."""
    feedback = group.grades[index].feedback
    return feedback if cfg.feedback and feedback.strip() else ""


def can_teach(group: Group, cfg: config.Reprompt) -> bool:
    """Returns whether any completion can learn in this context, whatever its reprompt's length."""
    rng = np.random.default_rng(0)  # any seed, because it decides only which demonstration
    return any(
        learns(group, index, cfg)
        and bool(
            own_choice(group, index, cfg, rng)
            or available_feedback(group, index, cfg)
            or teaches_anyway(cfg)
        )
        for index in range(len(group.completions))
    )


def learns(group: Group, index: int, cfg: config.Reprompt) -> bool:
    """Returns whether completion `index` is one of those that the context teaches."""
    return cfg.teaches == "all" or (cfg.teaches == "right") == group.grades[index].correct


def teaches_anyway(cfg: config.Reprompt) -> bool:
    """Returns whether the context teaches where it has nothing to show."""
    return cfg.always or bool(cfg.instruction)


def own_choice(
    group: Group, index: int, cfg: config.Reprompt, rng: np.random.Generator
) -> tuple[DemonstrationSource, ...]:
    """Returns the demonstrations of completion `index` from its own group.

    For a context of another question they are not shown, but they decide whether the completion
    learns, so that the control teaches the same completions.
    """
    return choose(group, index, replace(cfg, sibling="success") if _is_control(cfg) else cfg, rng)


def _is_control(cfg: config.Reprompt) -> bool:
    return cfg.of == "another_question"


def messages(
    example: Example, demonstrations: Sequence[str], feedback: str, cfg: config.Reprompt
) -> tuple[Message, ...]:
    """Returns the conversation that the teacher reads, in which only the last message differs.

    Without demonstrations, feedback and instruction it is the example's conversation. Braces in
    questions and solutions are text, never fields of a template. A context without the question
    leaves out earlier messages except the system's.
    """
    before, last = example.messages[:-1], example.messages[-1]
    if not demonstrations and not feedback:
        added = f"\n\n{cfg.instruction}" if cfg.instruction else ""
        return (*before, Message(role=last["role"], content=last["content"] + added))
    if not cfg.question:
        before = tuple(message for message in before if message["role"] == "system")
    content = _fill(
        cfg.template,
        {
            "prompt": last["content"] if cfg.question else "",
            "solution": "".join(
                _fill(cfg.solution_template, {"demonstration": text}) for text in demonstrations
            ),
            "feedback": _fill(cfg.feedback_template, {"feedback": feedback}) if feedback else "",
        },
    )
    content = f"{content}\n\n{cfg.instruction}" if cfg.instruction else content
    return (*before, Message(role=last["role"], content=content))


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Returns the template with each {name} of `values` replaced, all at once."""
    parts = re.split(rf"\{{({'|'.join(values)})\}}", template)
    parts[1::2] = [values[name] for name in parts[1::2]]
    return "".join(parts)


def shorten(
    text: str,
    render: Callable[[str], np.ndarray],
    tokenizer: PromptTokenizer,
    limit: int,
) -> np.ndarray | None:
    """Returns `render` of a beginning of `text` that fits into `limit` tokens.

    Each round drops as many tokens from the end of the text as are over the limit. A second round
    is needed only if the tokenizer merges tokens at the cut in another way. Returns None if no
    readable text is left.
    """
    ids = tokenizer.encode(text)
    keep, tokens = len(ids), render(text)
    while len(tokens) > limit:
        keep -= len(tokens) - limit
        # A cut inside a character's bytes decodes to U+FFFD.
        text = tokenizer.decode(ids[:keep]).rstrip("\ufffd") if keep > 0 else ""
        if not text.strip():
            return None
        tokens = render(text)
    return tokens


def fit(
    example: Example,
    demonstrations: Sequence[str],
    feedback: str,
    tokenizer: PromptTokenizer,
    cfg: config.Reprompt,
    enable_thinking: bool | None,
) -> Fitted:
    """Returns the reprompt within `cfg.max_tokens`.

    truncation="right" cuts off the end of the tokens. truncation="demonstration" keeps question,
    closing instruction and generation prompt whole. It shortens the last demonstration. If no word
    of it fits, it drops it and shortens the demonstration before. Without any demonstration it
    shows the feedback and shortens that.

    Args:
        example: The question.
        demonstrations: Their texts, in the order in which the teacher reads them.
        feedback: Its text, or "".
        tokenizer: Renders conversations into tokens.
        cfg: Templates, limit and truncation.
        enable_thinking: An option of the chat template; None leaves it out.
    """
    if cfg.thinking != "as_student":
        enable_thinking = cfg.thinking == "on"
    encode = functools.partial(tokenizer.encode_prompt, enable_thinking=enable_thinking)
    count = len(demonstrations)
    added = "" if count and cfg.feedback_only_without_solution else feedback
    plain = not cfg.instruction and cfg.thinking == "as_student"
    if not count and not added and plain:
        return Fitted(tokens=None, demonstrations=0, feedback_used=False, truncated=False)
    tokens = encode(messages(example, demonstrations, added, cfg))
    over = len(tokens) > cfg.max_tokens
    if not over or cfg.truncation == "right":
        return Fitted(
            tokens=tokens[: cfg.max_tokens],
            demonstrations=count,
            feedback_used=bool(added),
            truncated=over,
        )

    def render(before: Sequence[str], text: str) -> np.ndarray:
        return encode(messages(example, (*before, text), added, cfg))

    for kept in range(count, 0, -1):
        *before, last = demonstrations[:kept]
        shortened = shorten(last, functools.partial(render, before), tokenizer, cfg.max_tokens)
        if shortened is not None:
            return Fitted(
                tokens=shortened, demonstrations=kept, feedback_used=bool(added), truncated=True
            )
    alone = None
    if feedback:
        alone = shorten(
            feedback,
            lambda text: encode(messages(example, (), text, cfg)),
            tokenizer,
            cfg.max_tokens,
        )
    return Fitted(tokens=alone, demonstrations=0, feedback_used=alone is not None, truncated=True)


def build(
    groups: Sequence[Group],
    tokenizer: PromptTokenizer,
    cfg: config.Reprompt,
    *,
    enable_thinking: bool | None,
    seed: int,
    step: int,
) -> list[list[TeacherPrompt]]:
    """Returns one reprompt per completion of each group.

    The random choice depends only on (seed, step, example id, completion index), so a resumed run
    and any number of hosts choose alike. A completion without demonstration and feedback gets the
    plain prompt, whatever its length.

    Args:
        groups: The completions and their grades.
        tokenizer: Renders conversations into tokens.
        cfg: What to show and how.
        enable_thinking: An option of the chat template; None leaves it out.
        seed: The seed of the run.
        step: The number of the training step.
    """
    built = []
    for number, group in enumerate(groups):
        name = zlib.crc32(group.example.id.encode())
        # Kept, because most completions of a group share their demonstration.
        kept: dict[tuple[tuple[str, ...], str], Fitted] = {}
        reprompts = []
        for index in range(len(group.completions)):
            rng = np.random.default_rng([seed, step, name, index])
            sources = own_choice(group, index, cfg, rng)
            texts = tuple(demonstration_text(group, source, cfg) for source in sources)
            if _is_control(cfg) and sources:
                other = from_another(groups, number, cfg, rng)
                texts = () if other is None else (other,)
            feedback = available_feedback(group, index, cfg)
            if (texts, feedback) not in kept:
                kept[texts, feedback] = fit(
                    group.example, texts, feedback, tokenizer, cfg, enable_thinking
                )
            fitted = kept[texts, feedback]
            plain = not learns(group, index, cfg)
            own = bool(cfg.instruction) or cfg.thinking != "as_student"
            cut = own and fitted.tokens is None
            shown = None if plain or not fitted.demonstrations else sources[0]
            reprompts.append(
                TeacherPrompt(
                    tokens=group.prompt if plain or fitted.tokens is None else fitted.tokens,
                    demonstration="another" if _is_control(cfg) and shown is not None else shown,
                    feedback_used=fitted.feedback_used and not plain,
                    truncated=fitted.truncated,
                    teaches_anyway=teaches_anyway(cfg) and not plain and not cut,
                )
            )
        built.append(reprompts)
    return built


def metrics(
    groups: Sequence[Group], reprompts: Sequence[Sequence[TeacherPrompt]], cfg: config.Reprompt
) -> dict[str, float]:
    """Returns shares of groups and completions; each is 0 if there are no completions.

        success_group_fraction       groups with at least one success
        demonstration_group_fraction groups in which a teacher reads a demonstration
        success_sample_fraction      completions with a demonstration (not: successful completions)
        feedback_available_fraction  completions with feedback; 0 unless reprompt.feedback is True
        feedback_used_fraction       completions whose teacher reads feedback
        reprompt_sample_fraction     completions that are distilled
        masked_fraction              completions that are not distilled
        truncated_fraction           completions whose reprompt was over max_tokens
        dropped_fraction             completions that are not distilled because of max_tokens

    The names of success_group, success_sample, feedback_available, feedback_used and
    reprompt_sample are those of the reference.
    """
    flat = [reprompt for group in reprompts for reprompt in group]
    with_success = [bool(successes(group, cfg.success_threshold)) for group in groups]
    available = [
        bool(available_feedback(group, index, cfg))
        for group in groups
        for index in range(len(group.completions))
    ]
    shares = {
        "success_group_fraction": with_success,
        "demonstration_group_fraction": [
            any(r.demonstration is not None for r in group) for group in reprompts
        ],
        "success_sample_fraction": [r.demonstration is not None for r in flat],
        "feedback_available_fraction": available,
        "feedback_used_fraction": [r.feedback_used for r in flat],
        "reprompt_sample_fraction": [r.distilled for r in flat],
        "masked_fraction": [not r.distilled for r in flat],
        "truncated_fraction": [r.truncated for r in flat],
        "dropped_fraction": [r.truncated and not r.distilled for r in flat],
    }
    return {name: sum(of) / max(len(of), 1) for name, of in shares.items()}
