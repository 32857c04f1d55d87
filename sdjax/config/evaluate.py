"""The config of the evaluate job."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdjax.config.checks import require, require_finite, require_names
from sdjax.config.sections.harness import Harness
from sdjax.config.sections.model import Mesh, Model
from sdjax.config.sections.rollout import Eval, Server
from sdjax.config.sections.run import Data, TaskConfig


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a model on the held-out examples of a task and, if given, of other tasks."""

    out: str
    """Directory of answers.jsonl, scores.json and scores.md."""
    task: TaskConfig | None = None
    """What is evaluated; None with lm_eval.tasks alone."""
    out_of_domain: dict[str, TaskConfig] = field(default_factory=dict)
    """Other tasks; their keys name their scores."""
    resume: bool = False
    """Continue after the last batch in `out`; without one, start from the beginning."""
    allow: tuple[str, ...] = ()
    """With resume: fields, or whole sections, in which the run may differ from here on, such as
    optim.lr or eval. Also data, held_out, tokenizer, template, weights and revision, which stand
    for what the run has read. See docs/command-line.md."""
    profile: str | None = None
    """Directory for a profiler trace of the second and third batch; the first one compiles. None
    writes no trace."""
    lexicon: str = "paper"
    """Epistemic words that are counted. paper: substrings, as in arXiv:2603.24472. word: whole
    words with inflections. Or a JSON file {"word": ["form", ...], ...}, counted as whole words."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    max_prompt_tokens: int = 1024
    """Longest prompt in tokens, after the chat template. Examples with a longer prompt are left out
    and counted."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None passes nothing."""
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    lm_eval: Harness = field(default_factory=Harness)
    plots: bool = False
    """Write pass_at_k.png too: the chance that one of k answers is correct, by k. Needs matplotlib
    (pip install 'sdjax[plots]')."""
    server: Server = field(default_factory=Server)
    """A server that serves the same model and draws the answers; by default the local sampler
    does."""

    def __post_init__(self) -> None:
        require_finite(self)
        require_names("out_of_domain", self.out_of_domain)
        require(
            self.task is not None or bool(self.lm_eval.tasks),
            "task",
            self.task,
            "name a task, or tasks of lm-evaluation-harness with lm_eval.tasks",
        )
        require(
            self.task is not None or not self.out_of_domain,
            "out_of_domain",
            sorted(self.out_of_domain),
            "needs a task beside it",
        )
        require(
            self.server.url is None or not self.lm_eval.tasks,
            "lm_eval.tasks",
            self.lm_eval.tasks,
            "needs the local sampler; set server.url None",
        )
        self.eval.check_server(self.server)
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
