"""The config of the evaluate job."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdjax.config.checks import require, require_names
from sdjax.config.sections.model import Mesh, Model
from sdjax.config.sections.rollout import Eval, Server
from sdjax.config.sections.run import Data, TaskConfig


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a model on the held-out examples of a task, and of others."""

    out: str
    """Directory of answers.jsonl, scores.json and scores.md."""
    task: TaskConfig
    """In domain."""
    out_of_domain: dict[str, TaskConfig] = field(default_factory=dict)
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
