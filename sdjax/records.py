"""Records on the host, in the order in which a step makes them."""

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

    The task's grader compares completions with `answer`. `solution` is a worked solution, where
    the data set has one. `id` is unique within its task and split. `columns` are all columns of
    the row as JSON values, where a reward or a grader of the user reads them.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    solution: str | None = None
    task: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The tokens sampled for one prompt, including the stop token if one was sampled.

    `logprobs[t]` is the log-probability of `tokens[t]` under the distribution that it was drawn
    from (after temperature, top-k and top-p).
    """

    tokens: np.ndarray  # int32[T_i]
    logprobs: np.ndarray  # float32[T_i]
    finish: Finish  # at a stop token, or at the limit of tokens


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Sampled tokens and their text, which is decoded without special tokens."""

    tokens: np.ndarray  # int32[T_i]
    logprobs: np.ndarray  # float32[T_i]
    text: str
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A grader's verdict on one completion: `reward` trains, `correct` counts in accuracy."""

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
    """The reprompt of one completion: the teacher reads it in place of the prompt.

    `demonstration` is the index in the group of the completion that it shows, or "solution" for the
    solution of the data set. It is "regenerated" for an answer that the model gave while it saw one
    of these, "another" for a completion of another question, and None without a demonstration.
    Without a demonstration and feedback the reprompt is the plain prompt, and the completion is not
    distilled unless the context teaches all the same.
    """

    tokens: np.ndarray  # int32[R_i]
    demonstration: int | Literal["solution", "regenerated", "another"] | None
    feedback_used: bool
    truncated: bool = False
    teaches_anyway: bool = False

    @property
    def distilled(self) -> bool:
        """Whether the completion learns: the teacher knows more, or teaches all the same."""
        return self.demonstration is not None or self.feedback_used or self.teaches_anyway
