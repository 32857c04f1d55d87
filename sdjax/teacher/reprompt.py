"""What the teacher reads: the prompt with a correct solution and/or feedback added. No jax.

Pure functions on records. For every completion of a group: choose demonstrations, choose
feedback, write them into the user message, and fit the result into `reprompt.max_tokens`.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from sdjax import config
from sdjax.records import Example, Group, Message, TeacherPrompt

OPEN, CLOSE = "<think>", "</think>"

DemonstrationSource = int | Literal["solution"]
"""Where a demonstration comes from: a completion's index in its group, or the data set."""


class PromptTokenizer(Protocol):
    """The part of sdjax.tokenizer.Tokenizer that reprompts need."""

    def encode_prompt(
        self, messages: Sequence[Message], *, enable_thinking: bool | None
    ) -> np.ndarray:
        """Returns int32[P]: the chat template's tokens up to the generation prompt."""
        ...

    def encode(self, text: str) -> Sequence[int] | np.ndarray:
        """Returns the tokens of plain text, without special tokens around it."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A rendered reprompt: how many demonstrations and whether feedback fitted into it.

    `tokens` is None where neither did: the teacher reads the plain prompt.
    """

    tokens: np.ndarray | None  # int32[R_i]
    demonstrations: int
    feedback_used: bool
    truncated: bool


def strip_thinking(text: str) -> str:
    """Returns the text without its thinking, as arXiv:2603.24472 does for c = s without thinking.

    First every <think>…</think> goes, with the white space after it; then all up to a closing
    tag that is left (some chat templates put the opening tag into the prompt). A thought that is
    never closed stays.
    """
    kept, position = [], 0
    while (start := text.find(OPEN, position)) >= 0:
        end = text.find(CLOSE, start + len(OPEN))
        if end < 0:
            break
        kept.append(text[position:start])
        position = _after_space(text, end + len(CLOSE))
    rest = "".join(kept) + text[position:]
    _, closed, after = rest.partition(CLOSE)
    return after.lstrip() if closed else rest


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def successes(group: Group, threshold: float) -> list[int]:
    """Returns the indices of the completions whose reward reaches the threshold."""
    return [i for i, grade in enumerate(group.grades) if grade.reward >= threshold]


def demonstration_text(group: Group, source: DemonstrationSource, cfg: config.Reprompt) -> str:
    """Returns what the teacher is shown of a source; "" where the data set has no solution."""
    if source == "solution":
        text = group.example.solution or ""
    else:
        text = group.completions[source].text
    return strip_thinking(text) if cfg.strip_thinking else text


def choose(
    group: Group, index: int, cfg: config.Reprompt, rng: np.random.Generator
) -> tuple[DemonstrationSource, ...]:
    """Returns the demonstrations of completion `index`: at most `cfg.demonstrations` sources.

    Blank ones are never chosen: a teacher that is shown nothing knows nothing. (The reference
    shows an empty solution where stripping the thinking left none.)
    """
    if cfg.demonstration == "none":
        return ()
    if cfg.demonstration == "solution":
        return ("solution",) if demonstration_text(group, "solution", cfg).strip() else ()
    candidates = [
        i
        for i in successes(group, cfg.success_threshold)
        if (cfg.own_success or i != index) and demonstration_text(group, i, cfg).strip()
    ]
    if cfg.demonstration == "random":
        candidates = [candidates[i] for i in rng.permutation(len(candidates))]
    elif cfg.demonstration != "first":
        sign = 1 if cfg.demonstration == "shortest" else -1
        candidates.sort(key=lambda i: sign * len(group.completions[i].tokens))
    return tuple(candidates[: cfg.demonstrations])


def available_feedback(group: Group, index: int, cfg: config.Reprompt) -> str:
    """Returns the grader's feedback on completion `index`; "" if it is blank or not asked for."""
    feedback = group.grades[index].feedback
    return feedback if cfg.feedback and feedback.strip() else ""


def can_teach(group: Group, cfg: config.Reprompt) -> bool:
    """Returns whether the teacher of some completion can be shown something, if it fits."""
    rng = np.random.default_rng(0)  # which demonstration, not whether there is one
    return any(
        choose(group, index, cfg, rng) or available_feedback(group, index, cfg)
        for index in range(len(group.completions))
    )


def messages(
    example: Example, demonstrations: Sequence[str], feedback: str, cfg: config.Reprompt
) -> tuple[Message, ...]:
    """Returns the conversation the teacher reads; the example's own if there is nothing to add.

    Only the last message changes. Braces in questions and solutions are text, never fields.
    """
    if not demonstrations and not feedback:
        return example.messages
    last = example.messages[-1]
    content = _fill(
        cfg.template,
        {
            "prompt": last["content"],
            "solution": "".join(
                _fill(cfg.solution_template, {"demonstration": text}) for text in demonstrations
            ),
            "feedback": _fill(cfg.feedback_template, {"feedback": feedback}) if feedback else "",
        },
    )
    return (*example.messages[:-1], Message(role=last["role"], content=content))


def _fill(template: str, values: Mapping[str, str]) -> str:
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def shorten(
    text: str,
    render: Callable[[str], np.ndarray],
    tokenizer: PromptTokenizer,
    limit: int,
) -> np.ndarray | None:
    """Returns `render` of the longest beginning of `text` found to fit into `limit` tokens.

    Tokens are dropped from the end of the text, each time as many as are over: one round where
    they do not merge differently at the cut. Returns None if nothing readable is left.
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

    truncation="demonstration" shortens the last demonstration, drops it if not a word of it
    fits, goes on with the one before; without any, feedback stands in and is shortened likewise.
    So question, closing instruction and generation prompt are whole in every reprompt.
    """

    def render(shown: Sequence[str], said: str) -> np.ndarray:
        conversation = messages(example, shown, said, cfg)
        return tokenizer.encode_prompt(conversation, enable_thinking=enable_thinking)

    count = len(demonstrations)
    said = "" if count and cfg.feedback_only_without_solution else feedback
    if not count and not said:
        return Fitted(tokens=None, demonstrations=0, feedback_used=False, truncated=False)
    tokens = render(demonstrations, said)
    if len(tokens) <= cfg.max_tokens:
        return Fitted(
            tokens=tokens, demonstrations=count, feedback_used=bool(said), truncated=False
        )
    if cfg.truncation == "right":
        tokens = tokens[: cfg.max_tokens]
        return Fitted(tokens=tokens, demonstrations=count, feedback_used=bool(said), truncated=True)
    for kept in range(count, 0, -1):
        *before, last = demonstrations[:kept]
        with_last = functools.partial(lambda before, text: render((*before, text), said), before)
        shortened = shorten(last, with_last, tokenizer, cfg.max_tokens)
        if shortened is not None:
            return Fitted(
                tokens=shortened, demonstrations=kept, feedback_used=bool(said), truncated=True
            )
    alone = None
    if feedback:
        alone = shorten(feedback, lambda text: render((), text), tokenizer, cfg.max_tokens)
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
    """Returns one reprompt for each completion of each group.

    The random choice depends on (seed, step, example id, completion index) alone, so a resumed
    run and any number of hosts choose alike. A completion without demonstration and feedback
    gets the plain prompt, whatever its length.
    """
    return [
        _build_group(group, tokenizer, cfg, enable_thinking=enable_thinking, seed=(seed, step))
        for group in groups
    ]


def _build_group(
    group: Group,
    tokenizer: PromptTokenizer,
    cfg: config.Reprompt,
    *,
    enable_thinking: bool | None,
    seed: tuple[int, int],
) -> list[TeacherPrompt]:
    @functools.cache  # members of a group mostly share their demonstration
    def fitted(sources: tuple[DemonstrationSource, ...], feedback: str) -> Fitted:
        texts = tuple(demonstration_text(group, source, cfg) for source in sources)
        return fit(group.example, texts, feedback, tokenizer, cfg, enable_thinking)

    name = zlib.crc32(group.example.id.encode())
    reprompts = []
    for index in range(len(group.completions)):
        sources = choose(group, index, cfg, np.random.default_rng([*seed, name, index]))
        result = fitted(sources, available_feedback(group, index, cfg))
        reprompts.append(
            TeacherPrompt(
                tokens=group.prompt if result.tokens is None else result.tokens,
                demonstration=sources[0] if result.demonstrations else None,
                feedback_used=result.feedback_used,
                truncated=result.truncated,
            )
        )
    return reprompts


def metrics(
    groups: Sequence[Group], reprompts: Sequence[Sequence[TeacherPrompt]], cfg: config.Reprompt
) -> dict[str, float]:
    """Returns shares, 0 for no completions: the reference's five under its own names, and ours.

    success_group_fraction       groups with at least one success
    demonstration_group_fraction groups of which a teacher reads a demonstration
    success_sample_fraction      completions with a demonstration (not: successful ones)
    feedback_available_fraction  completions with feedback, where feedback is asked for
    feedback_used_fraction       completions whose teacher reads it
    reprompt_sample_fraction     completions that are distilled
    masked_fraction              the others
    truncated_fraction           completions whose reprompt was over max_tokens
    dropped_fraction             of all completions, those whose teacher lost everything by that
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
    return {f"reprompt/{name}": sum(of) / max(len(of), 1) for name, of in shares.items()}
