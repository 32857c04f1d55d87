"""The sections of the teacher: what it reads, and which weights it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_finite, require_one

DemonstrationChoice = Literal[
    "random", "first", "shortest", "longest", "majority", "solution", "none"
]


@dataclass(frozen=True, kw_only=True)
class Reprompt:
    """What the teacher reads (arXiv:2601.20802 section 3; the defaults follow the paper's code)."""

    template: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    """The user message; {prompt} is the student's own user message."""
    solution_template: str = "\nCorrect solution:\n\n{demonstration}"
    """Text of {solution} where there is a demonstration; several demonstrations repeat it."""
    feedback_template: str = (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    )
    """Text of {feedback} where feedback is used."""
    success_threshold: float = 0.5
    """A completion whose reward is at least this can be a demonstration."""
    demonstration: DemonstrationChoice = "random"
    """Which successful completion of the group is shown. majority: one with the commonest answer of
    the group, whatever its reward, where no right answer is known. solution: the data set's own
    solution. none: no demonstration."""
    demonstrations: int = 1
    """Most demonstrations shown."""
    own_success: bool = False
    """Whether a completion may be its own demonstration."""
    of: Literal["question", "another_question"] = "question"
    """Whose completions are shown. another_question: those of another question of the step, which
    is a control (arXiv:2608.09228). The same completions learn as with question."""
    sibling: Literal["success", "failure"] = "success"
    """Which completions can be a demonstration: those that reach success_threshold, or the
    others."""
    question: bool = True
    """Whether {prompt} is the student's user message. False leaves it empty: the teacher does not
    know the question."""
    instruction: str = ""
    """Text after the template. With it the teacher teaches where there is nothing else to show,
    too."""
    always: bool = False
    """Teach where there is nothing to show: the teacher then reads the student's prompt."""
    thinking: Literal["as_student", "on", "off"] = "as_student"
    """The chat template's enable_thinking in the reprompt. as_student: rollout.enable_thinking."""
    teaches: Literal["all", "right", "wrong"] = "all"
    """Which completions learn from it: all, or only those that are right or wrong."""
    feedback: bool = False
    """Show the grader's feedback on a completion to the teacher of that completion."""
    feedback_only_without_solution: bool = True
    """Leave the feedback out where there is a demonstration."""
    strip_thinking: bool = False
    """Show the demonstration without the text inside <think> tags (condition "c = s without
    thinking" of arXiv:2603.24472)."""
    regenerate: bool = False
    """The model answers once more with the demonstration in its prompt. If that answer is correct,
    every teacher of the group reads it in place of the demonstration. Otherwise the group has no
    demonstration (arXiv:2603.24472 section 3, regeneration-conditioned). The prompt is the reprompt
    of the group's first completion that has a demonstration."""
    max_tokens: int = 4096
    """Longest reprompt in tokens, after the chat template."""
    beyond_context: bool = False
    """Allow a reprompt and its completion to exceed the model's context, as the reference does. It
    uses 22,528 + 20,480 tokens with Qwen3's 40,960. The teacher only scores such positions."""
    truncation: Literal["demonstration", "right"] = "demonstration"
    """What is cut from a reprompt over max_tokens. demonstration: the demonstration is shortened,
    so question, closing instruction and generation prompt survive. right: the end is cut off, as in
    the reference."""

    def __post_init__(self) -> None:
        require_finite(self, "reprompt.")
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
        require(
            not self.regenerate or (self.of == "question" and self.sibling == "success"),
            "reprompt.regenerate",
            self.regenerate,
            "needs reprompt.of 'question' and reprompt.sibling 'success': the model answers with a "
            "solution in sight",
        )
        require(
            self.of == "question" or self.demonstration not in ("solution", "none"),
            "reprompt.of",
            self.of,
            "needs a reprompt.demonstration that is a completion, such as 'random'",
        )
        require(
            self.demonstration != "majority" or self.sibling == "success",
            "reprompt.sibling",
            self.sibling,
            "must be 'success' with reprompt.demonstration 'majority', which reads no reward",
        )
        require_one("reprompt.demonstrations", self.demonstrations)
        require_one("reprompt.max_tokens", self.max_tokens)

    def check_shown(self, *, demonstrations: bool, feedback: bool, at: str = "reprompt") -> None:
        """Raises UserError if the template leaves out what it has to show.

        `at` is the place of the section in the config.
        """
        for wanted, name in ((demonstrations, "{solution}"), (feedback, "{feedback}")):
            require(
                not wanted or name in self.template,
                f"{at}.template",
                self.template,
                f"needs {name}, or its reader knows no more than the student",
            )

    def check_teaches(self, at: str = "reprompt") -> None:
        """Raises UserError if the section, which stands at `at`, can tell a teacher nothing."""
        require(
            self.shows,
            f"{at}.demonstration",
            self.demonstration,
            f"needs {at}.feedback or {at}.instruction, or no teacher knows more than the student",
        )
        shown = self.demonstration != "none"
        self.check_shown(demonstrations=shown, feedback=self.feedback, at=at)

    @property
    def shows(self) -> bool:
        """Whether the teacher can ever know more than the student, or teaches all the same."""
        shown = self.demonstration != "none" or self.feedback
        return shown or bool(self.instruction) or self.always


@dataclass(frozen=True, kw_only=True)
class Demonstration(Reprompt):
    """A context that shows completions of the step, or the data set's solution."""


@dataclass(frozen=True, kw_only=True)
class WithoutQuestion(Reprompt):
    """A context that shows the demonstration and not the question (arXiv:2607.02234)."""

    question: bool = False


@dataclass(frozen=True, kw_only=True)
class Feedback(Reprompt):
    """A context that shows the grader's feedback on the completion, and no demonstration."""

    demonstration: DemonstrationChoice = "none"
    feedback: bool = True


@dataclass(frozen=True, kw_only=True)
class Plain(Reprompt):
    """A context that shows nothing: the teacher reads the student's prompt, and teaches."""

    demonstration: DemonstrationChoice = "none"
    always: bool = True


@dataclass(frozen=True, kw_only=True)
class Instruction(Reprompt):
    """A context that adds an instruction to the question, such as to answer carelessly."""

    demonstration: DemonstrationChoice = "none"
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Which weights the teacher has."""

    kind: Literal["initial", "live", "ema", "refreshed", "trust_region", "model"] = "initial"
    """initial: the weights at the start of the run. live: the student's weights. ema: a moving
    average of the student's weights. refreshed: a copy of the student's weights, made anew every
    `every` steps. trust_region: the initial weights, with logits mixed with the student's logits on
    the reprompt. model: those of another model, which `path` names."""
    path: str = ""
    """kind=model: the other model, given as model.path is. It needs the student's vocabulary and
    tokenizer; its sizes and its family may differ. Its weights are kept in model.compute_dtype and
    split over the devices as the student's. With target.context "plain" it reads the student's
    prompt (on-policy distillation, arXiv:2306.13649)."""
    revision: str | None = None
    """kind=model: branch, tag or commit of a hub id; None is the default branch."""
    models: dict[str, str] = field(default_factory=dict)
    """kind=model: several models in place of `path`, each by the value of the column `route` whose
    rows it teaches, such as {"algebra": "runs/a/model", "geometry": "runs/b/model"}."""
    route: str = ""
    """kind=model: the column of the data set's rows that chooses among `models`."""
    every: int = 10
    """kind=refreshed: steps from one copy of the student's weights to the next."""
    adapter_scale: float = 1.0
    """With lora.rank and kind live, ema or refreshed: the teacher's adapters are multiplied by it.
    0 is the model without adapters; over 1 the teacher is ahead of the student."""
    ema_rate: float = 0.05
    """kind=ema: share of the student's weights added after each step."""
    mix: float = 0.05
    """kind=trust_region: the student's share of the logits."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the stored weights of an initial, refreshed or trust_region teacher. An ema teacher
    and copies of adapters are float32."""
    location: Literal["device", "host"] = "device"
    """Where the weights of an initial, trust_region or model teacher are kept. host: in the host's
    memory; they move to the devices during updates, which frees device memory during rollouts and
    evaluations."""

    def __post_init__(self) -> None:
        require_finite(self, "teacher.")
        require(0 <= self.ema_rate <= 1, "teacher.ema_rate", self.ema_rate, "must lie in [0, 1]")
        require(0 <= self.mix <= 1, "teacher.mix", self.mix, "must lie in [0, 1]")
        require_one("teacher.every", self.every)
        named = "needs a folder, a hub id, a .gguf file or package:NAME with teacher.kind 'model'"
        given = bool(self.path.strip()) or bool(self.models)
        require(self.kind != "model" or given, "teacher.path", self.path, named)
        once = "teacher.path is set too; set one of the two"
        require(not (self.path and self.models), "teacher.models", self.models, once)
        both = "teacher.models and teacher.route need each other"
        require(bool(self.models) == bool(self.route), "teacher.route", self.route, both)
        blank = "needs a value of the column, and a model, in each entry"
        whole = all(name and path.strip() for name, path in self.models.items())
        require(whole, "teacher.models", self.models, blank)
        alone = "is read with teacher.path only"
        require(not self.models or not self.revision, "teacher.revision", self.revision, alone)
        scaled = self.adapter_scale == 1 or self.kind in ("live", "ema", "refreshed")
        need = f"needs a teacher of kind live, ema or refreshed, not {self.kind!r}"
        require(scaled, "teacher.adapter_scale", self.adapter_scale, need)
        unread = f"is read with teacher.kind 'model' only, not {self.kind!r}"
        for name in ("path", "revision", "models", "route"):
            value = getattr(self, name)
            require(self.kind == "model" or not value, f"teacher.{name}", value, unread)
        require(
            self.location == "device" or self.kind in ("initial", "trust_region", "model"),
            "teacher.location",
            self.location,
            f"must be 'device' for teacher.kind {self.kind!r}, whose weights change",
        )

    def __hash__(self) -> int:
        values = vars(self) | {"models": tuple(self.models.items())}
        return hash(tuple(values.items()))

    @property
    def paths(self) -> dict[str, str]:
        """The models that teach with kind "model", by the value of `route`; "" for a single one."""
        return self.models or {"": self.path}
