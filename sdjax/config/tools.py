"""The configs of the other jobs: sweep, export, prepare, bench, plan, preflight and report."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_finite, require_names, require_repository
from sdjax.config.sections.loss import Loss, Policy
from sdjax.config.sections.model import Lora, Mesh, Model, Shape
from sdjax.config.sections.optim import Optim
from sdjax.config.sections.target import SOLUTION, STUDENT, Target
from sdjax.config.sections.teacher import Reprompt, Teacher
from sdjax.config.train import Train


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trains once for each value of a field and shows the scores against the value.

    The default field is the number of training questions (arXiv:2603.24472 section 6.2).
    """

    out: str
    """Directory of coverage.json, coverage.md and one run directory per training, NAME/VALUE."""
    runs: dict[str, Train]
    """Trainings that are compared, by name. The sweep sets their `out` and `resume`."""
    axis: str = "data.limit"
    """Field that varies, with its sections, such as data.limit."""
    values: tuple[int | float | str, ...] = (1, 8, 64, 128, 512)
    """Values of the field, in the order of the runs."""
    report: bool = False
    """Write report.html to `out` with all trainings side by side. The report job shows a selection,
    which suits many long runs."""
    resume: bool = False
    """Continue in `out`: finished trainings stay as they are; an interrupted one continues from its
    newest checkpoint."""
    allow: tuple[str, ...] = ()
    """With resume: fields, or whole sections, in which the run may differ from here on, such as
    optim.lr or eval. Also data, held_out, tokenizer, template, weights, revision and teacher, which
    stand for what the run has read. See docs/command-line.md."""

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.runs), "runs", sorted(self.runs), "needs at least one training")
        require_names("runs", self.runs)
        for name, one in self.runs.items():
            held_out = one.task.held_out
            require(held_out > 0, f"runs.{name}.task.held_out", held_out, "scores are compared")
        require(bool(self.values), "values", self.values, "needs at least one")
        for name, run in self.runs.items():
            at_ends = run.eval.at_ends
            require(at_ends, f"runs.{name}.eval.at_ends", at_ends, "must be True: it is compared")
            pushed = run.checkpoint.push_to
            remedy = "must be empty: every value of the axis would be pushed to one repository"
            require(not pushed, f"runs.{name}.checkpoint.push_to", pushed, remedy)
        repeated = len(set(map(str, self.values))) < len(self.values)
        require(not repeated, "values", self.values, "must be different ones")
        for value in self.values:
            ok = re.fullmatch(r"[\w.+-]+", str(value)) is not None
            require(ok, "values", value, "names a directory: letters, digits, . _ + and -")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a training checkpoint as a Hugging Face folder."""

    run: str
    """Run directory of a training."""
    out: str
    """Folder to write."""
    step: int | None = None
    """Step of the checkpoint; None is the newest."""
    dtype: Literal["source", "bfloat16", "float16", "float32"] | None = None
    """Type of the exported weights, as in checkpoint.export_dtype; None takes that of the run."""
    push_to: str = ""
    """Repository of the Hugging Face hub, OWNER/NAME, that gets the folder with a model card, as in
    checkpoint.push_to."""
    push_private: bool = True
    """push_to: whether a repository that does not exist yet becomes private."""
    mesh: Mesh = field(default_factory=Mesh)

    def __post_init__(self) -> None:
        require_repository("push_to", self.push_to)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Builds a TFDS data set (ArrayRecord) from the hub or from a file."""

    name: str
    """Name of the data set."""
    splits: dict[str, str]
    """Source of each split; sdjax/data/sources.py lists the kinds of source."""
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
    """What is measured. rollout: prefill and decode. update: packing and the train step. Both
    together: a whole step. head: the chunked head alone, with its gradient. tail: rollouts whose
    lengths follow a lognormal distribution."""
    weights: Literal["random", "model"] = "random"
    """random: weights of a model of `shape`, drawn on the devices. model: the weights of
    model.path."""
    shape: Shape = field(default_factory=Shape)
    """weights=random: sizes of the model."""
    model: Model = field(default_factory=Model)
    """weights=model: the model; also how the forward pass runs."""
    lora: Lora = field(default_factory=Lora)
    prompts: tuple[int, ...] = (8,)
    """Numbers of prompts sampled at the same time; each number is measured."""
    group_size: int = 8
    """Number of completions of each prompt."""
    prompt_tokens: int = 128
    """Length of every prompt in tokens."""
    completion_tokens: int = 512
    """Length of every completion in tokens, because no stop token ends one."""
    reprompt_tokens: int = 640
    """Tokens that the teacher reads before a completion: the prompt and a demonstration."""
    median_share: float = 0.125
    """tail: the median length as a share of completion_tokens, which cuts longer lengths."""
    spread: float = 1.0
    """tail: standard deviation of the logarithm of the length."""
    batches: int = 4
    """tail: number of batches of prompts, one after the other."""
    repeats: int = 3
    """Timed runs after a first run, which compiles; the median counts."""
    measure: bool = True
    """True measures the device's matrix product and copy speed in this run. False takes them from
    the table in sdjax/bench/peaks.py."""
    profile: str | None = None
    """Directory for profiler traces: one of rollout and update for each number of prompts, and one
    of the head. tail has none. None writes no trace."""
    seed: int = 0
    """Seed of weights, tokens and sampling."""
    target: Target = field(default_factory=Target)
    """What the student is moved toward; each of its contexts has reprompt_tokens."""
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    policy: Policy = field(default_factory=Policy)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.phases), "phases", self.phases, "needs at least one")
        require(
            bool(self.prompts) and min(self.prompts) >= 1,
            "prompts",
            self.prompts,
            "needs numbers of at least 1",
        )
        kind, need = self.teacher.kind, "is not measured: the teacher has the student's sizes"
        require(kind != "model", "teacher.kind", kind, need)
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimates whether a training fits a slice, how long its steps take and what they cost."""

    train: tuple[str, ...]
    """Config files of trainings, or of benches, whose one step is then planned. Only the
    config.json of their models is read."""
    change: tuple[str, ...] = ()
    """Fields of these configs to change, each NAME=VALUE, such as optim.microbatch=128
    mesh.tensor=2."""
    out: str = "runs/plan"
    """Directory of plan.json and plan.md."""
    topology: tuple[str, ...] = ("v5p:4x4x4",)
    """CHIP:SHAPE, each planned for every training. TPU v4, v5e, v5p, v6e or tpu7x (also called
    ironwood) with the shape of the slice (v6e:8x8). GPU a100-40, a100-80, h100 or h200 with their
    number (h100:8). Programs for TPUs are compiled on this machine, which needs no TPU. GPUs are
    estimated by arithmetic."""
    slices: int = 1
    """Number of slices of that shape, joined by the data centre's network."""
    search: bool = False
    """Search for the smallest slice of this chip, then for the mesh, microbatch and slots with the
    shortest step. The search uses arithmetic; the best choices are compiled. `topology` then names
    the chip alone (v5p), or the largest slice allowed."""
    most_step_s: float = 0.0
    """search: longest allowed step in seconds; 0 allows any."""
    compile: bool = True
    """False estimates TPUs by arithmetic too, which takes a second in place of minutes."""
    every_layer: bool = False
    """True compiles prefill and decode with all layers, which takes many minutes. False compiles
    them with two small numbers of layers and extrapolates."""
    price: float = 0.0
    """Dollars per chip-hour; 0 counts chip-hours only."""
    prompt_tokens: int = 256
    """Mean prompt in tokens, for the estimate of seconds. The estimate of memory uses the longest
    prompt."""
    completion_tokens: int = 0
    """Mean completion in tokens, for the estimate of seconds. 0 takes half of
    rollout.max_completion_tokens, or a bench's completion_tokens."""

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.train), "train", self.train, "needs a config file")
        require(bool(self.topology), "topology", self.topology, "needs one, such as v5p:4x4x4")
        require(self.slices >= 1, "slices", self.slices, "must be at least 1")
        require(self.price >= 0, "price", self.price, "must not be negative")
        require(self.most_step_s >= 0, "most_step_s", self.most_step_s, "must be positive, or 0")
        require(self.prompt_tokens >= 1, "prompt_tokens", self.prompt_tokens, "must be at least 1")
        require(
            self.completion_tokens >= 0,
            "completion_tokens",
            self.completion_tokens,
            "must be at least 1, or 0: half of the longest",
        )
        for change in self.change:
            require("=" in change, "change", change, "must be NAME=VALUE")


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Measures before a training what its teacher knows in each context, and recommends one.

    The model answers training questions, alone and in each context (docs/how-to/preflight.md).
    """

    train: str
    """Config file of the training, or package:NAME. A sweep stands for its first training."""
    change: tuple[str, ...] = ()
    """Fields of this config to change, each NAME=VALUE, such as rollout.group_size=4."""
    out: str = "runs/preflight"
    """Directory of preflight.md and preflight.json."""
    questions: int = 32
    """Training questions that are asked, the first ones in the order of the training. Each gets
    rollout.group_size answers in every context, and as many twice without one."""
    contexts: dict[str, Reprompt] = field(default_factory=dict)
    """Contexts by name in addition to those of the training, as in Train.contexts."""
    only: tuple[str, ...] = ()
    """Names of the contexts that are measured. If empty, all but plain and reference, which teach
    only together with others."""
    least_groups: float = 0.1
    """Least share of the groups that a context must be able to teach to be recommended."""
    least_doubt: float = 0.5
    """A context keeps doubt if the answers in it have at least this share of the model's epistemic
    words per 1,000 tokens."""
    topology: str = ""
    """CHIP:SHAPE of the training, as in Plan, for the seconds of a step. If empty, the devices of
    this machine; seconds are left out if Plan does not know them."""

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.train), "train", self.train, "needs the config file of a training")
        need = "must be at least 2: intervals need several"
        require(self.questions >= 2, "questions", self.questions, need)
        for change in self.change:
            require("=" in change, "change", change, "must be NAME=VALUE")
        require_names("contexts", self.contexts)
        for name in (STUDENT, SOLUTION):
            remedy = "is a name of its own; give another name"
            require(name not in self.contexts, "contexts", name, remedy)
        for name in ("least_groups", "least_doubt"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Shows trainings side by side in one HTML file: curves, epistemic words, rollouts."""

    runs: tuple[str, ...]
    """Run directories of trainings, finished or not."""
    out: str = "report.html"
    """HTML file to write. It needs no other file, and it replaces an existing one."""
    title: str = "sdjax report"
    """Title of the page."""
    plots: str | None = None
    """Directory for the curves as PNG files too; needs matplotlib (pip install 'sdjax[plots]').
    None writes none."""
    lexicon: str | None = None
    """Epistemic words that rollouts are marked and filtered by: paper, word, or a JSON file
    {"word": ["form", ...], ...}. None takes those of the first run."""
    max_rollouts: int = 5000
    """Most rollouts shown. Runs get equal shares. Each run shows rollouts written in full first, in
    whole groups spaced evenly over its steps."""
    max_mb: float = 40.0
    """Largest size of the file in millions of bytes. Above it, fewer completions keep their
    alternatives (every second, every third, ...); then fewer groups are shown. The page states
    this."""

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.runs), "runs", self.runs, "needs at least one run directory")
        require(
            self.out.endswith((".html", ".htm")), "out", self.out, "must end in .html: it is a file"
        )
        require(self.max_rollouts >= 0, "max_rollouts", self.max_rollouts, "must not be negative")
        require(self.max_mb >= 1, "max_mb", self.max_mb, "must be at least 1")
