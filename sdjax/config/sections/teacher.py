"""The sections that describe the teacher: what it reads and which weights it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_one


@dataclass(frozen=True, kw_only=True)
class Reprompt:
    """What the teacher reads (arXiv:2601.20802 section 3; spec of the paper's code)."""

    template: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    """The user message; {prompt} is the student's own user message."""
    solution_template: str = "\nCorrect solution:\n\n{demonstration}"
    """Stands for {solution} where there is a demonstration."""
    feedback_template: str = (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    )
    """Stands for {feedback} where feedback is used."""
    success_threshold: float = 0.5
    """A completion whose reward reaches this can be shown as a demonstration."""
    demonstration: Literal["random", "first", "shortest", "longest", "solution", "none"] = "random"
    """Which successful completion of the group is shown; "solution" is the data set's own."""
    demonstrations: int = 1
    """How many are shown, at most."""
    own_success: bool = False
    """Whether a completion may be its own demonstration."""
    feedback: bool = False
    """Whether the grader's feedback on a completion is shown to its teacher."""
    feedback_only_without_solution: bool = True
    """With a demonstration at hand, leave the feedback out."""
    strip_thinking: bool = False
    """Show the demonstration without what stands inside <think> tags (c = s without thinking)."""
    regenerate: bool = False
    """Have the model answer once more with the demonstration in sight, as the teacher of a group's
    first completion with one would read it. Where that answer is right, every teacher of the group
    reads it in place of the demonstration; else the group has none (arXiv:2603.24472 section 3,
    regeneration-conditioned)."""
    max_tokens: int = 4096
    """Longest reprompt after the chat template."""
    beyond_context: bool = False
    """Let a reprompt and its completion be longer than the model's context, as the reference does
    (22,528 + 20,480 tokens of Qwen3's 40,960); the teacher only scores such positions."""
    truncation: Literal["demonstration", "right"] = "demonstration"
    """Of a reprompt over max_tokens: shorten the demonstration, so that question, closing
    instruction and generation prompt survive; "right" cuts the end off, as the reference does."""

    def __post_init__(self) -> None:
        require("{prompt}" in self.template, "reprompt.template", self.template, "needs {prompt}")
        require(
            "{demonstration}" in self.solution_template,
            "reprompt.solution_template",
            self.solution_template,
            "needs {demonstration}",
        )
        require(
            "{feedback}" in self.feedback_template,
            "reprompt.feedback_template",
            self.feedback_template,
            "needs {feedback}",
        )
        require(
            not self.regenerate or self.demonstration != "none",
            "reprompt.regenerate",
            self.regenerate,
            "needs a reprompt.demonstration that the model can answer with in sight, not 'none'",
        )
        require_one("reprompt.demonstrations", self.demonstrations)
        require_one("reprompt.max_tokens", self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Which weights the teacher has."""

    kind: Literal["initial", "live", "ema", "trust_region"] = "initial"
    """initial: those at the start of the run. live: the student's. ema: a moving average.
    trust_region: the initial ones, their logits mixed with the student's on the reprompt."""
    ema_rate: float = 0.05
    """ema: the share of the student that enters once a step."""
    mix: float = 0.05
    """trust_region: the student's share of the logits."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the stored weights of an initial or trust_region teacher; an ema teacher is float32."""
    location: Literal["device", "host"] = "device"
    """host: an initial or trust_region teacher's weights are kept in the host's memory and are on
    the devices during updates only, so that rollouts and evaluations have their room."""

    def __post_init__(self) -> None:
        require(0 <= self.ema_rate <= 1, "teacher.ema_rate", self.ema_rate, "must lie in [0, 1]")
        require(0 <= self.mix <= 1, "teacher.mix", self.mix, "must lie in [0, 1]")
        require(
            self.location == "device" or self.kind in ("initial", "trust_region"),
            "teacher.location",
            self.location,
            f"must be 'device' for teacher.kind {self.kind!r}, whose weights change",
        )
