"""The configs of the other jobs: sweep, export, prepare, bench, plan, report."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_names
from sdjax.config.sections.loss import Loss, Policy
from sdjax.config.sections.model import Lora, Mesh, Model, Shape
from sdjax.config.sections.optim import Optim
from sdjax.config.sections.teacher import Teacher
from sdjax.config.train import Train


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Says whether a training fits a slice, how long its steps take and what they cost."""

    train: tuple[str, ...]
    """Config files of trainings, or of benches, which measure one's step. Of their models only
    config.json is read."""
    change: tuple[str, ...] = ()
    """Fields of them to change, each NAME=VALUE, such as optim.microbatch=128 mesh.tensor=2."""
    out: str = "runs/plan"
    """Directory of plan.json and plan.md."""
    topology: tuple[str, ...] = ("v5p:4x4x4",)
    """CHIP:SHAPE, each for every training. TPU v4, v5e, v5p, v6e with the slice's shape (v6e:8x8),
    or a GPU with their number: a100-40, a100-80, h100, h200 (h100:8). Programs for TPUs are
    compiled, here and now, and need no chip; for GPUs everything is arithmetic."""
    slices: int = 1
    """Slices of that shape, joined by the data centre's network."""
    search: bool = False
    """Look for the smallest slice of this chip and, on it, the mesh, microbatch and slots whose
    step is the shortest. By arithmetic; the best are compiled. `topology` then names the chip
    alone (v5p), or the largest slice that may be taken."""
    most_step_s: float = 0.0
    """search: seconds that a step may take; 0: any number."""
    compile: bool = True
    """False: TPUs by arithmetic alone too, in a second and not in minutes."""
    every_layer: bool = False
    """Compile prefill and decode with all layers, which takes many minutes. False: with a few, and
    again with twice as many; a layer more adds what those add."""
    price: float = 0.0
    """Dollars for one hour of one chip; 0 counts chip-hours only."""
    prompt_tokens: int = 256
    """Mean prompt, for the estimate of seconds; memory is always that of the longest."""
    completion_tokens: int = 0
    """Mean completion; 0: half of rollout.max_completion_tokens, in a bench all of it."""

    def __post_init__(self) -> None:
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
class Report:
    """Shows trainings side by side in one HTML file: curves, epistemic words, rollouts."""

    runs: tuple[str, ...]
    """Run directories of trainings, finished or not."""
    out: str = "report.html"
    """HTML file to write; it holds everything it shows. One that is there is replaced."""
    title: str = "sdjax report"
    plots: str | None = None
    """Directory for the curves as PNG files too; needs matplotlib (pip install 'sdjax[plots]')."""
    lexicon: str | None = None
    """Epistemic words that are marked in rollouts and filtered by: paper, word, or a JSON file of
    one's own {"word": ["form", ...], ...}. None: those of the first run."""
    max_rollouts: int = 5000
    """Rollouts shown at most. Runs get even shares; of a run those with their tokens come first,
    whole groups evenly spaced from its first to its last."""
    max_mb: float = 40.0
    """Size of the file at most, in millions of bytes. Over it, alternatives of every second, third,
    ... completion are kept, then fewer groups are shown. The page says so."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs", self.runs, "needs at least one run directory")
        require(
            self.out.endswith((".html", ".htm")), "out", self.out, "must end in .html: it is a file"
        )
        require(self.max_rollouts >= 0, "max_rollouts", self.max_rollouts, "must not be negative")
        require(self.max_mb >= 1, "max_mb", self.max_mb, "must be at least 1")
