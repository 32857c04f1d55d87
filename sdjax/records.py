"""Host-side records, in the order in which a step makes them. No jax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np

Finish = Literal["stop", "length"]


class Message(TypedDict):
    """One turn of a conversation, as chat templates read it."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a data set.

    `answer` is what the task's grader compares with; `solution` is a worked solution, where the
    data set has one. `id` is unique within its task and split.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    solution: str | None = None
    task: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The tokens sampled for one prompt, including the stop token if one was sampled.

    `logprobs[t]` is that of `tokens[t]` under the distribution it was drawn from (after
    temperature, top-k and top-p). `text` is decoded without special tokens.
    """

    tokens: np.ndarray  # int32[T_i]
    logprobs: np.ndarray  # float32[T_i]
    text: str
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What a grader says of one completion. `reward` trains, `correct` counts in accuracy."""

    reward: float
    correct: bool
    feedback: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Group:
    """One example, its prompt, and the G graded completions of that prompt."""

    example: Example
    prompt: np.ndarray  # int32[P_i]
    completions: tuple[Completion, ...]
    grades: tuple[Grade, ...]


@dataclass(frozen=True, kw_only=True)
class TeacherPrompt:
    """What the teacher reads in place of the prompt, for one completion.

    `demonstration` is the index in the group of the completion shown, "solution" for the data
    set's own, "regenerated" for an answer given with one of these in sight, or None. With neither a
    demonstration nor feedback the reprompt is the plain prompt and the completion is not
    distilled.
    """

    tokens: np.ndarray  # int32[R_i]
    demonstration: int | Literal["solution", "regenerated"] | None
    feedback_used: bool
    truncated: bool = False

    @property
    def distilled(self) -> bool:
        """Whether the teacher knows more than the student."""
        return self.demonstration is not None or self.feedback_used
