"""What a config file can ask for: the job configs, and by the same name every section they hold.

A config file is Python that binds `config` to one of these jobs. The docstring under each field
is what `--help` prints. No jax.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from sdjax import redact
from sdjax.errors import UserError
from sdjax.log_sections import Alarm, Checkpoint, Log
from sdjax.objective_sections import Loss, Policy
from sdjax.plan_section import Plan
from sdjax.report_section import Report
from sdjax.sections import (
    Data,
    Eval,
    Lora,
    Mesh,
    Model,
    Optim,
    Reprompt,
    Rollout,
    Sampling,
    Server,
    Shape,
    Task,
    Teacher,
    require,
    require_names,
)
from sdjax.study_jobs import SFT, Study
from sdjax.trace_jobs import Traces

__all__ = [
    "SFT",
    "Alarm",
    "Bench",
    "Checkpoint",
    "Data",
    "Eval",
    "Evaluate",
    "Export",
    "Job",
    "Log",
    "Lora",
    "Loss",
    "Mesh",
    "Model",
    "Optim",
    "Plan",
    "Policy",
    "Prepare",
    "Report",
    "Reprompt",
    "Rollout",
    "Sampling",
    "Server",
    "Shape",
    "Study",
    "Sweep",
    "Task",
    "Teacher",
    "Traces",
    "Train",
    "UserError",
    "flat",
    "require",
    "to_dict",
    "to_public",
]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model on its own words: SDPO, GRPO or a blend."""

    out: str
    """Run directory: resolved config, metrics, rollouts, checkpoints, exported model."""
    task: Task
    out_of_domain: dict[str, Task] = field(default_factory=dict)
    """Other tasks whose held-out examples are evaluated too, each under the name that its figures
    bear: metrics ood/NAME/..."""
    steps: int = 100
    seed: int = 0
    """Of sampling."""
    resume: bool = False
    """Go on from the newest whole checkpoint in `out`; without one, start there."""
    replay: str | None = None
    """Make the update again that optim.most_skipped saved in this file, OUT/nonfinite/STEP.npz, and
    print its loss, its gradient's norm and what is the first not to be finite."""
    profile: str | None = None
    """Directory for a profiler trace of the two steps after the first, which compiles."""
    lexicon: str = "paper"
    """Which epistemic words are counted: paper (substrings, as arXiv:2603.24472 does), word (whole
    words, with inflections), or a JSON file {"word": ["form", ...], ...} of one's own, counted as
    whole words. Of the tokens in them metrics epistemic/... and loss.token_weights speak."""
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    rollout: Rollout = field(default_factory=Rollout)
    reprompt: Reprompt = field(default_factory=Reprompt)
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    policy: Policy = field(default_factory=Policy)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=Eval)
    alarm: Alarm = field(default_factory=Alarm)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        require_names("out_of_domain", self.out_of_domain)
        if self.checkpoint.keep_best:
            every = self.eval.every
            require(
                every > 0 and self.checkpoint.every % every == 0,
                "checkpoint.every",
                self.checkpoint.every,
                f"must be a multiple of eval.every ({every}) with checkpoint.keep_best: each "
                "checkpoint needs its evaluation",
            )
        require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        require(
            self.rollout.prompts_per_step % self.optim.minibatches == 0,
            "optim.minibatches",
            self.optim.minibatches,
            f"must divide rollout.prompts_per_step ({self.rollout.prompts_per_step})",
        )
        completions = self.rollout.prompts_per_step * self.rollout.group_size
        self.optim.check_update(completions // self.optim.minibatches)
        require(
            self.loss.distillation > 0
            or self.rollout.group_size >= 2
            or self.rollout.dynamic_sampling_rounds == 0,
            "rollout.dynamic_sampling_rounds",
            self.rollout.dynamic_sampling_rounds,
            "must be 0 with rollout.group_size 1: no group's rewards can differ",
        )
        require(
            self.loss.distillation == 0
            or self.reprompt.demonstration != "none"
            or self.reprompt.feedback,
            "reprompt.demonstration",
            self.reprompt.demonstration,
            "needs reprompt.feedback, or no teacher knows more than the student",
        )
        require(
            not self.reprompt.regenerate or self.loss.distillation > 0,
            "reprompt.regenerate",
            self.reprompt.regenerate,
            "needs loss.distillation over 0: without a teacher nobody reads the answer",
        )
        if self.loss.distillation > 0 and self.reprompt.demonstration not in ("solution", "none"):
            require(
                self.rollout.group_size >= 2 or self.reprompt.own_success or self.reprompt.feedback,
                "rollout.group_size",
                self.rollout.group_size,
                "needs at least 2, or no completion has a sibling to learn from",
            )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trains once for each value of a field, and shows scores against it.

    As it stands, how the number of training questions tells (arXiv:2603.24472 section 6.2).
    """

    out: str
    """Directory: NAME/VALUE, each a training's run directory; coverage.json and coverage.md."""
    runs: dict[str, Train]
    """Trainings that are compared, by name; the sweep sets their `out` and `resume`."""
    axis: str = "data.limit"
    """The field of every training that is varied, with its sections."""
    values: tuple[int | float | str, ...] = (1, 8, 64, 128, 512)
    """Its values, in the order in which they are run."""
    report: bool = False
    """Whether report.html in `out` shows all trainings side by side; as it stands, no: of many long
    ones the report job shows those that one names."""
    resume: bool = False
    """Go on in `out`: finished trainings are left as they are, the one under way goes on from its
    newest checkpoint."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs", sorted(self.runs), "needs at least one training")
        require_names("runs", self.runs)
        require(bool(self.values), "values", self.values, "needs at least one")
        repeated = len(set(map(str, self.values))) < len(self.values)
        require(not repeated, "values", self.values, "must be different ones")
        for value in self.values:
            ok = re.fullmatch(r"[\w.+-]+", str(value)) is not None
            require(ok, "values", value, "names a directory: letters, digits, . _ + and -")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a model on the held-out examples of a task, and of others."""

    out: str
    """Directory of answers.jsonl, scores.json and scores.md."""
    task: Task
    """In domain."""
    out_of_domain: dict[str, Task] = field(default_factory=dict)
    """Other tasks, each under the name that its figures bear."""
    resume: bool = False
    """Go on after the last batch in `out`; without one, start there."""
    profile: str | None = None
    """Directory for a profiler trace of the two batches after the first, which compiles."""
    lexicon: str = "paper"
    """Which epistemic words are counted: paper (substrings, as arXiv:2603.24472 does), word (whole
    words, with inflections), or a JSON file {"word": ["form", ...], ...} of one's own, counted as
    whole words."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    max_prompt_tokens: int = 1024
    """Longest prompt after the chat template; examples with a longer one are left out, counted."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    server: Server = field(default_factory=Server)
    """One that serves the same model."""

    def __post_init__(self) -> None:
        require_names("out_of_domain", self.out_of_domain)
        require(
            self.server.reload == "none",
            "server.reload",
            self.server.reload,
            "must be none: an evaluation scores the weights that the server has",
        )
        require(
            self.max_prompt_tokens >= 1,
            "max_prompt_tokens",
            self.max_prompt_tokens,
            "must be at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a training checkpoint as a Hugging Face folder."""

    run: str
    """Run directory of a training."""
    out: str
    """Folder to write."""
    step: int | None = None
    """Which checkpoint; None is the newest."""
    mesh: Mesh = field(default_factory=Mesh)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Builds a TFDS data set (ArrayRecord) from the hub or a file."""

    name: str
    """Of the data set."""
    splits: dict[str, str]
    """For each split its source, as sdjax/data/sources.py describes them."""
    out: str = "data"
    """TFDS data directory; tasks then read OUT/NAME/1.0.0:SPLIT."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None,
            "name",
            self.name,
            "must be lower-case letters, digits and _",
        )
        require(bool(self.splits), "splits", self.splits, "needs at least one split")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measures the speed of rollouts and updates on random tokens."""

    out: str
    """Directory of bench.json."""
    phases: tuple[Literal["rollout", "update", "head", "tail"], ...] = ("rollout", "update")
    """rollout: prefill and decode; update: packing and the train step; both: a whole step. head:
    the chunked head alone, with gradient. tail: rollouts whose lengths are drawn from a lognormal
    distribution."""
    weights: Literal["random", "model"] = "random"
    """random: of a model of `shape`, drawn on the devices; model: those of model.path."""
    shape: Shape = field(default_factory=Shape)
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    prompts: tuple[int, ...] = (8,)
    """Prompts sampled at one time; each number is measured."""
    group_size: int = 8
    """Completions of each prompt."""
    prompt_tokens: int = 128
    completion_tokens: int = 512
    """Of every completion: no token stops one."""
    reprompt_tokens: int = 640
    """What the teacher reads before a completion: the prompt and a demonstration."""
    median_share: float = 0.125
    """tail: the median length, as a share of completion_tokens, which cuts longer ones off."""
    spread: float = 1.0
    """tail: standard deviation of the logarithm of a length."""
    batches: int = 4
    """tail: batches of prompts, one after the other."""
    repeats: int = 3
    """Timed runs after a first one, which compiles; the median counts."""
    measure: bool = True
    """Measure what the device can do (matrix product, copy) in this run; else use the table in
    sdjax/bench/peaks.py."""
    profile: str | None = None
    """Directory for profiler traces: of one more run for each number of prompts, rollout and update
    in one, and of the head's. tail has none."""
    seed: int = 0
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    policy: Policy = field(default_factory=Policy)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)

    def __post_init__(self) -> None:
        require(bool(self.phases), "phases", self.phases, "needs at least one")
        require(
            bool(self.prompts) and min(self.prompts) >= 1,
            "prompts",
            self.prompts,
            "needs numbers of at least 1",
        )
        for name in ("group_size", "prompt_tokens", "reprompt_tokens", "batches", "repeats"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(
            self.completion_tokens >= 2,
            "completion_tokens",
            self.completion_tokens,
            "must be at least 2: the first comes with the prefill",
        )
        require(0 < self.median_share <= 1, "median_share", self.median_share, "must lie in (0, 1]")
        require(self.spread >= 0, "spread", self.spread, "must not be negative")
        require(
            self.group_size >= 2 or "update" not in self.phases,
            "group_size",
            self.group_size,
            "must be at least 2 with an update: completions learn from a sibling",
        )
        for number in self.prompts if "update" in self.phases else ():
            self.optim.check_update(number * self.group_size)
        require(
            self.optim.minibatches == 1,
            "optim.minibatches",
            self.optim.minibatches,
            "must be 1: a single update is measured",
        )


Job = Train | Evaluate | Export | Prepare | Traces | Bench | Report | SFT | Study | Plan | Sweep


def to_dict(config: object) -> dict:
    """Returns a config as nested plain values, each section with the name of its class."""
    out: dict = {"class": type(config).__name__}
    return out | {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}  # type: ignore[arg-type]


def to_public(config: object) -> dict:
    """Returns a config as JSON values for a file: as `to_dict`, without secrets."""
    return redact.redacted(json.loads(json.dumps(to_dict(config), default=str)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values by their path, "section.field"."""
    out: dict[str, Any] = {}
    for name, inner in value.items():
        full = prefix + name
        out |= flat(inner, f"{full}.") if isinstance(inner, dict) else {full: inner}
    return out
