"""The configs of the study, sft and traces jobs (arXiv:2603.24472 sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_finite, require_names
from sdjax.config.sections.model import Mesh, Model, Shape
from sdjax.config.sections.optim import Optim
from sdjax.config.sections.rollout import Eval, Server
from sdjax.config.sections.run import Checkpoint, Data, Log, TaskConfig
from sdjax.config.sections.teacher import Reprompt


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Finetunes a model on conversations: cross-entropy on the assistant's tokens."""

    out: str
    """Run directory: resolved config, metrics, answers, checkpoints, exported model."""
    source: str
    """Conversations; sdjax/data/sources.py lists the kinds of source. A row has messages, a list of
    {"role", "content"}; conversations, a list of {"from", "value"} (ShareGPT); or prompt and
    completion."""
    messages: str = ""
    """Column of the messages. If empty, messages or conversations."""
    prompt: str = ""
    """Column of the prompt, a text or a list of messages. If empty, prompt. A name here or in
    `completion` leaves a column of messages aside."""
    completion: str = ""
    """Column of the completion, a text or a list of messages. If empty, completion."""
    turns: Literal["last", "all"] = "last"
    """Turns of the assistant that are learned. last: the last one. all: each turn as a separate
    context, as the model sees it when it answers."""
    max_tokens: int = 2048
    """Longest conversation in tokens, after the chat template. data.on_overlong decides about
    longer ones."""
    batch: int = 64
    """Conversations per update. The loss is the mean over their learned tokens."""
    epochs: float = 1.0
    """How often each conversation is seen."""
    steps: int = 0
    """Number of updates; 0 takes as many as `epochs` needs."""
    log_every: int = 10
    """Updates per line of metrics; each line is a mean over them."""
    task: TaskConfig | None = None
    """A task whose held-out examples are evaluated before, during and after; None evaluates
    nothing. Set it in the config file, because arguments can only change its fields."""
    out_of_domain: dict[str, TaskConfig] = field(default_factory=dict)
    """Other tasks whose held-out examples are evaluated too. Their keys name their metrics:
    ood/NAME/..."""
    max_prompt_tokens: int = 1024
    """Longest prompt of an evaluation in tokens. Examples with a longer prompt are left out and
    counted."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    resume: bool = False
    """Continue from the newest checkpoint in `out`; without one, start from the beginning."""
    allow: tuple[str, ...] = ()
    """With resume: fields, or whole sections, in which the run may differ from here on, such as
    optim.lr or eval. Also data, held_out, tokenizer, template, weights and revision, which stand
    for what the run has read. See docs/command-line.md."""
    profile: str | None = None
    """Directory for a profiler trace of the second and third update; the first one compiles. None
    writes no trace."""
    lexicon: str = "paper"
    """Epistemic words that are counted: paper, word, or a JSON file {"word": ["form", ...], ...}
    (sdjax/analysis/epistemic.py)."""
    on_step: Callable[..., object] | None = None
    """A function that is called after each line of metrics: on_step(step, metrics). If it returns
    True or "stop", the run ends as at its last step. Set it in the config file."""
    on_evaluation: Callable[..., object] | None = None
    """The same for evaluations: on_evaluation(step, metrics), with the metrics of the
    evaluation."""
    chunk_tokens: int = 2048
    """Positions whose logits exist at the same time. Changes memory and speed, not results."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        require_finite(self)
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
    """Returns the templates of the paper's study, which differ in white space from those of its
    training."""
    return Reprompt(
        template="{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
        solution_template="\n\nCorrect solution: {demonstration}",
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compares a model's answers with and without a solution in the prompt; writes data for SFT.

    The model answers problems that it sometimes solves again under each condition (arXiv:2603.24472
    section 3). unguided: the problem alone. guided: with one of its correct answers.
    without_thinking: with that answer, without its thinking. A chain then shows the best answer of
    the condition before.
    """

    out: str
    """Directory of collected.jsonl, answers/CONDITION.jsonl, trajectories.jsonl, scores.json and
    scores.md. It also gets d_ug.jsonl and d_sg.jsonl, which SFT reads."""
    task: TaskConfig
    split: Literal["train", "held_out"] = "train"
    """Which examples of the task are the problems, in their order."""
    problems: int = 100
    """Number of problems studied: the first ones solved between solved_min and solved_max times."""
    tried: int = 2000
    """Most problems sampled in the search for them."""
    solved_min: int = 1
    """Smallest number of correct answers, among eval.k, of a problem that is studied."""
    solved_max: int = 4
    """Largest number of correct answers, among eval.k, of a problem that is studied."""
    conditions: tuple[Literal["unguided", "guided", "without_thinking"], ...] = (
        *("unguided", "guided"),
        "without_thinking",
    )
    """Conditions in addition to the chain. The chain begins with guided."""
    rounds: int = 1
    """Links of the chain after guided. regenerated shows the best guided answer; regenerated_2
    shows the best regenerated answer; and so on."""
    lexicon: str = "paper"
    """Epistemic words that are counted: paper, word, or a JSON file {"word": ["form", ...], ...}
    (sdjax/analysis/epistemic.py)."""
    traces: int = 1
    """Most correct answers of a problem in each data set; 0 takes all. Both sets have equally many
    of each problem, so that they differ in the answers alone."""
    resume: bool = False
    """Continue after the last batch in `out`; without one, start from the beginning."""
    allow: tuple[str, ...] = ()
    """With resume: fields, or whole sections, in which the run may differ from here on, such as
    optim.lr or eval. Also data, held_out, tokenizer, template, weights and revision, which stand
    for what the run has read. See docs/command-line.md."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    max_prompt_tokens: int = 1024
    """Longest prompt in tokens, after the chat template and without a solution. Problems with a
    longer prompt are left out and counted. A solution is never cut."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    reprompt: Reprompt = field(default_factory=_study_templates)
    """How a solution is shown: template and solution_template. The other fields have no effect."""
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0, k=8, top_k=20))
    """How answers are drawn; each problem has eval.k answers under each condition."""
    server: Server = field(default_factory=Server)
    """A server that serves the same model and draws the answers; by default the local sampler
    does."""

    def __post_init__(self) -> None:
        require_finite(self)
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
        self.reprompt.check_shown(demonstrations=True, feedback=False)
        self.eval.check_server(self.server)
        require(
            self.server.reload == "none",
            "server.reload",
            self.server.reload,
            "must be none: a study asks the model that the server has",
        )


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Writes conversations that a task's program generates: searches with doubt, and answers to a
    shown solution."""

    out: str
    """Directory of traces.jsonl, one conversation per row, and of model/. model/ holds a
    config.json and a tokenizer learned from such conversations, so that SFT can start from random
    weights."""
    tasks: dict[str, TaskConfig]
    """Tasks whose questions are used; only questions that are neither trained on nor held out."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of each task in the rows, relative to the other tasks; a task that is not named has
    1."""
    rows: int = 10_000
    """Number of conversations."""
    seed: int = 0
    """Seed of every row; row i depends only on the seed and on i."""
    workers: int = 0
    """Number of processes; 0 is one per core. Changes no row."""
    patience: tuple[int, int] = (2, 12)
    """Smallest and largest number of failures after which a search gives up, drawn uniformly."""
    doubt: float = 0.75
    """Share of the possible places in a search where doubt is put into words."""
    guided: float = 0.4
    """Share of rows whose question shows a solution, as a teacher's prompt does."""
    shown_answer: float = 0.3
    """Share of the guided rows that show only the last line of a solution, without its search."""
    shown_direct: float = 0.2
    """Share of the guided rows that show a solution without a search. The other guided rows show a
    whole solution."""
    trace_hazard: float = 0.7
    """With a whole solution: the chance, at the start and after each failure, that the answer turns
    to it."""
    answer_hazard: float = 0.2
    """With the last line of a solution: the same chance."""
    guided_doubt: float = 0.25
    """With a whole solution: share of the possible places in a false start where doubt is put into
    words."""
    guided_gives_up: bool = False
    """Whether an answer to a shown solution gives up as often as the others. It then ends
    with a wrong answer, if a search without the solution fails within `patience`."""
    instructed: float = 0.0
    """Share of the rows without a solution whose question has the instruction. Their search never
    gives up."""
    instruction: str = "Keep trying."
    """Text after the question in these rows, as a context of the teacher shows it."""
    reprompt: Reprompt = field(default_factory=Reprompt)
    """How a solution is shown: its templates."""

    vocabulary: int = 576
    """Most tokens that the tokenizer may have."""
    shape: Shape = field(default_factory=Shape)
    """Sizes of the model; its vocabulary may be larger than the tokenizer's."""

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.tasks), "tasks", self.tasks, "needs at least one")
        self.reprompt.check_shown(demonstrations=self.guided > 0, feedback=False)
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
        shares = ("doubt", "guided", "shown_answer", "shown_direct", "guided_doubt", "instructed")
        for name in shares:
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie in [0, 1]")
        told = bool(self.instruction) or self.instructed == 0
        require(told, "instruction", self.instruction, "needs a text with instructed over 0")
        for name in ("trace_hazard", "answer_hazard"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "must lie in (0, 1]")
        shown = self.shown_answer + self.shown_direct
        require(shown <= 1, "shown_answer", self.shown_answer, "exceeds 1 with shown_direct")
