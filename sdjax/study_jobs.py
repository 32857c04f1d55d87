"""The jobs of arXiv:2603.24472 sections 3 and 4: the study of what a solution in sight does to an
answer, and finetuning on the answers. No jax.

The docstring under each field is what `--help` prints. sdjax.config has them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdjax.log_sections import Checkpoint, Log
from sdjax.sections import (
    Data,
    Eval,
    Mesh,
    Model,
    Optim,
    Reprompt,
    Server,
    Task,
    require,
    require_names,
)


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
    task: Task | None = None
    """One whose held-out examples are evaluated before, during and after; None evaluates nothing.
    Give it in the file: on the command line only its fields can be changed."""
    out_of_domain: dict[str, Task] = field(default_factory=dict)
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
    task: Task
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
