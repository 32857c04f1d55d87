"""The configs of the study, finetuning and traces jobs (arXiv:2603.24472 sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_names
from sdjax.config.sections.model import Mesh, Model, Shape
from sdjax.config.sections.optim import Optim
from sdjax.config.sections.rollout import Eval, Server
from sdjax.config.sections.run import Checkpoint, Data, Log, TaskConfig
from sdjax.config.sections.teacher import Reprompt


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Finetunes a model on conversations: cross-entropy on what the assistant says."""

    out: str
    """Run directory: resolved config, metrics, answers, checkpoints, exported model."""
    source: str
    """Conversations, as sdjax/data/sources.py describes a source. A row has messages, a list of
    {"role", "content"}, or prompt and completion."""
    turns: Literal["last", "all"] = "last"
    """Which turns of the assistant are learned. all: each in a context of its own, as the model
    meets it when it answers."""
    max_tokens: int = 2048
    """Longest conversation after the chat template; what data.on_overlong does to a longer one."""
    batch: int = 64
    """Conversations an update. The loss is the mean over their learned tokens."""
    epochs: float = 1.0
    """How often each conversation is seen."""
    steps: int = 0
    """Updates; 0: as many as `epochs` take."""
    log_every: int = 10
    """Updates from one line of metrics to the next: each is a mean over them."""
    task: TaskConfig | None = None
    """One whose held-out examples are evaluated before, during and after; None evaluates nothing.
    Give it in the file: on the command line only its fields can be changed."""
    out_of_domain: dict[str, TaskConfig] = field(default_factory=dict)
    """Other tasks whose held-out examples are evaluated too, each under the name that its figures
    bear: metrics ood/NAME/..."""
    max_prompt_tokens: int = 1024
    """Longest prompt of an evaluation; examples with a longer one are left out, counted."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`; without one, start there."""
    profile: str | None = None
    """Directory for a profiler trace of the two updates after the first, which compiles."""
    lexicon: str = "paper"
    """Epistemic words that are counted: paper, word, or a JSON file of one's own {"word": ["form",
    ...], ...} (sdjax/analysis/epistemic.py)."""
    chunk_tokens: int = 2048
    """Positions whose logits exist at one time; changes memory and speed, not results."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        require_names("out_of_domain", self.out_of_domain)
        for name in ("max_tokens", "batch", "log_every", "max_prompt_tokens", "chunk_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.steps >= 0, "steps", self.steps, "must not be negative; 0: as epochs take")
        require(self.epochs > 0, "epochs", self.epochs, "must be positive")
        require(
            self.task is not None or not self.out_of_domain,
            "out_of_domain",
            sorted(self.out_of_domain),
            "needs a task beside it, the one in domain",
        )
        require(
            self.optim.minibatches == 1,
            "optim.minibatches",
            self.optim.minibatches,
            "must be 1: every update has conversations of its own",
        )
        self.optim.check_update(self.batch)


def _study_templates() -> Reprompt:
    """Those of the paper's study, which differ from its training's in white space."""
    return Reprompt(
        template="{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
        solution_template="\n\nCorrect solution: {demonstration}",
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compares a model's answers with and without a solution in sight; writes data for SFT.

    Problems that the model solves now and then are answered again under each condition
    (arXiv:2603.24472 section 3): unguided; guided, shown a correct answer of its own whole; with
    its thinking left out; and shown the best answer of the condition before, in a chain.
    """

    out: str
    """Directory of collected.jsonl, answers/CONDITION.jsonl, trajectories.jsonl, scores.json,
    scores.md, and of d_ug.jsonl and d_sg.jsonl, which SFT reads."""
    task: TaskConfig
    split: Literal["train", "held_out"] = "train"
    """Which of the task's examples are the problems, in their order."""
    problems: int = 100
    """Problems studied: the first ones that are solved as often as asked."""
    tried: int = 2000
    """Problems sampled at most to find them."""
    solved_min: int = 1
    """Least number of correct ones among the eval.k answers of a problem that is studied."""
    solved_max: int = 4
    conditions: tuple[Literal["unguided", "guided", "without_thinking"], ...] = (
        *("unguided", "guided"),
        "without_thinking",
    )
    """Conditions beside the chain, which begins with guided."""
    rounds: int = 1
    """Links of the chain after guided: regenerated is shown the best answer given there, a second
    one, regenerated_2, the best of regenerated, and so on."""
    lexicon: str = "paper"
    """Epistemic words that are counted: paper, word, or a JSON file of one's own {"word": ["form",
    ...], ...} (sdjax/analysis/epistemic.py)."""
    traces: int = 1
    """Correct answers of a problem in each data set, at most; 0 takes all. Both sets have the same
    number of each problem, so that they differ in the answers alone."""
    resume: bool = False
    """Go on after the last batch in `out`; without one, start there."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    max_prompt_tokens: int = 1024
    """Longest prompt after the chat template, without a solution; problems with a longer one are
    left out, counted. A solution is never cut."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    reprompt: Reprompt = field(default_factory=_study_templates)
    """How a solution is shown: template and solution_template; the other fields have no say."""
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0, k=8, top_k=20))
    """How answers are drawn, k of each problem under each condition."""
    server: Server = field(default_factory=Server)
    """One that serves the same model."""

    def __post_init__(self) -> None:
        for name in ("problems", "tried", "max_prompt_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("rounds", "traces"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        require(
            1 <= self.solved_min <= self.solved_max <= self.eval.k,
            "solved_min",
            (self.solved_min, self.solved_max),
            f"must be at least 1, at most solved_max, and that at most eval.k ({self.eval.k})",
        )
        require(
            "guided" in self.conditions or not self.rounds,
            "rounds",
            self.rounds,
            "must be 0 unless conditions have guided, with which the chain begins",
        )
        require(bool(self.conditions), "conditions", self.conditions, "needs at least one")
        require(
            self.server.reload == "none",
            "server.reload",
            self.server.reload,
            "must be none: a study asks the model that the server has",
        )


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Writes conversations made by a task's program: searches with doubt, answers to a solution
    shown."""

    out: str
    """Directory: traces.jsonl, one conversation a row, and model/, a config.json and a tokenizer
    learned from such conversations, from which SFT can begin with random weights."""
    tasks: dict[str, TaskConfig]
    """Whose questions; of each task only those that are neither trained on nor held out."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of each task's rows, relative to the others; 1 for a task that is not named."""
    rows: int = 10_000
    seed: int = 0
    """Row i depends on it and i alone."""
    workers: int = 0
    """Processes; 0 is one a core. Changes no row."""
    patience: tuple[int, int] = (2, 12)
    """Least and greatest number of failures after which a search gives up, drawn evenly."""
    doubt: float = 0.75
    """Share of the places in a search where doubt is put into words."""
    guided: float = 0.4
    """Share of rows whose question comes with a solution shown, as a teacher reads it."""
    shown_answer: float = 0.3
    """Share of those that are shown the last line of a solution, without its search."""
    shown_direct: float = 0.2
    """Share of those that are shown a solution without any search. The others see a whole one."""
    trace_hazard: float = 0.7
    """Shown a whole solution: the chance, at the start and after each failure, that the answer
    turns to it."""
    answer_hazard: float = 0.2
    """Shown the last line: the same chance."""
    guided_doubt: float = 0.25
    """Shown a whole solution: the share, in a false start, of places of doubt."""
    reprompt: Reprompt = field(default_factory=Reprompt)
    """How a solution is shown: its templates."""

    vocabulary: int = 576
    """Most tokens that the tokenizer may have."""
    shape: Shape = field(default_factory=Shape)
    """Of the model; its vocabulary as given here may be larger than the tokenizer's."""

    def __post_init__(self) -> None:
        require(bool(self.tasks), "tasks", self.tasks, "needs at least one")
        for name, share in self.shares.items():
            require(name in self.tasks, "shares", name, f"must be one of {', '.join(self.tasks)}")
            require(share > 0, f"shares.{name}", share, "must be positive")
        require(self.rows >= 1, "rows", self.rows, "must be at least 1")
        require(self.vocabulary >= 261, "vocabulary", self.vocabulary, "at least 261: every byte")
        require(
            self.shape.vocab_size >= self.vocabulary,
            "shape.vocab_size",
            self.shape.vocab_size,
            f"must be at least vocabulary ({self.vocabulary})",
        )
        require(self.workers >= 0, "workers", self.workers, "must be at least 0")
        low, high = self.patience
        require(1 <= low <= high, "patience", self.patience, "needs 1 or more, the lesser first")
        for name in ("doubt", "guided", "shown_answer", "shown_direct", "guided_doubt"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie in [0, 1]")
        for name in ("trace_hazard", "answer_hazard"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "must lie in (0, 1]")
        shown = self.shown_answer + self.shown_direct
        require(shown <= 1, "shown_answer", self.shown_answer, "exceeds 1 with shown_direct")
