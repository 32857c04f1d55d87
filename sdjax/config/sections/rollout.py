"""The sections of sampling: rollouts in training, evaluations, and the server that may draw
them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sdjax.config.checks import require, require_finite, require_one

MAX_GAP = 0.2
"""Nats per token. bfloat16 on both sides gives .01 to .03; other weights give 1 and more."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    SECTION: ClassVar[str] = ""
    """Prefix of the field names in an error."""

    temperature: float = 1.0
    """Temperature of the softmax; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draws from the smallest set of tokens that holds this probability; 1 is off."""
    top_k: int = 0
    """Draws from this many likeliest tokens; 0 is off."""
    max_completion_tokens: int = 512
    """Longest completion in tokens. A completion that reaches it without a stop token is truncated
    and has finish "length"."""
    slots: int = 0
    """Completions decoded at the same time, over all devices; when one ends, the next takes its
    slot. 0 uses as many as fit in free memory, at most 256 per batch shard. Changes speed, memory
    and, in bfloat16, the rounding of products. Set it where a resumed run must repeat every
    token."""

    def __post_init__(self) -> None:
        require_finite(self, self.SECTION)
        at, longest = self.SECTION, self.max_completion_tokens
        require(
            self.temperature == 0 or self.temperature >= 1e-6,
            f"{at}temperature",
            self.temperature,
            "must be 0, which is greedy, or at least 1e-6",
        )
        require(0 < self.top_p <= 1, f"{at}top_p", self.top_p, "must lie in (0, 1]")
        require(self.top_k >= 0, f"{at}top_k", self.top_k, "must be at least 0, which is off")
        require(longest >= 1, f"{at}max_completion_tokens", longest, "must be at least 1")
        require(self.slots >= 0, f"{at}slots", self.slots, "must be at least 0: as many as fit")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running vLLM or SGLang server that draws the completions in place of the local sampler."""

    url: str | None = None
    """Address such as http://127.0.0.1:8000, without /v1; None uses the local sampler."""
    engine: Literal["vllm", "sglang"] = "vllm"
    """Which kind of server runs at the address."""
    model: str | None = None
    """vLLM: the name under which it serves the model; None takes the first name that it lists."""
    reload: Literal["none", "folder"] = "none"
    """How the server gets the weights of each step. folder: they are written to a folder, and the
    server loads it. none: the server keeps its weights, as evaluations require."""
    folder: str | None = None
    """reload=folder: the folder, under a path that this machine and the server share. None is
    OUT/server."""
    off_policy: bool = False
    """Allows training while the server keeps its old weights."""
    max_gap: float | None = None
    """Largest mean difference in nats between the server's log-probability of a token and the
    trainer's (sampler/abs_gap); a larger one ends the run. None is 0.2, and no limit with
    off_policy."""
    concurrency: int = 32
    """Prompts sent to the server at the same time."""
    timeout_s: float = 600.0
    """Longest wait in seconds for the completions of one prompt, and for loading weights."""
    retries: int = 5
    """Further tries, with growing pauses, while the server is busy, fails or cannot be reached. A
    server that has answered and refuses connections later is waited for during timeout_s."""
    key_variable: str | None = None
    """Environment variable that holds the server's API key; None sends no key."""

    def __post_init__(self) -> None:
        require_finite(self, "server.")
        url = self.url
        require(
            url is None
            or (url.startswith(("http://", "https://")) and not url.rstrip("/").endswith("/v1")),
            "server.url",
            url,
            "must be such as http://127.0.0.1:8000, without /v1",
        )
        gap = self.max_gap
        require(gap is None or gap > 0, "server.max_gap", gap, "must be positive")
        require_one("server.concurrency", self.concurrency)
        require(self.timeout_s > 0, "server.timeout_s", self.timeout_s, "must be positive")
        require(self.retries >= 0, "server.retries", self.retries, "must not be negative")

    @property
    def gap_limit(self) -> float | None:
        """The limit that `max_gap` means; None: no limit."""
        if self.max_gap is None and not self.off_policy:
            return MAX_GAP
        return self.max_gap


@dataclass(frozen=True, kw_only=True)
class Rollout(Sampling):
    """The completions that a training step learns from. The trainer scores them at the same
    temperature."""

    SECTION: ClassVar[str] = "rollout."

    prompts_per_step: int = 32
    """Number of prompts per step; each has group_size completions."""
    group_size: int = 8
    """Number of completions of each prompt."""
    dynamic_sampling_rounds: int = 0
    """Most further rounds of prompts_per_step prompts, which replace groups that teach nothing
    (DAPO, arXiv:2503.14476 section 3.2). A group teaches nothing if its rewards are equal and, with
    a teacher, it has no demonstration or feedback. After the last round the step uses the groups
    that it has. 0 is off."""
    max_prompt_tokens: int = 1024
    """Longest prompt in tokens, after the chat template. data.on_overlong decides about longer
    ones."""
    enable_thinking: bool | None = None
    """Passed to the chat template of student and teacher; None passes nothing."""
    server: Server = field(default_factory=Server)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "rollout.temperature", self.temperature, "must be positive")
        require_one("rollout.prompts_per_step", self.prompts_per_step)
        require_one("rollout.group_size", self.group_size)
        require(
            self.dynamic_sampling_rounds >= 0,
            "rollout.dynamic_sampling_rounds",
            self.dynamic_sampling_rounds,
            "must not be negative; 0 is off",
        )
        require_one("rollout.max_prompt_tokens", self.max_prompt_tokens)
        if self.server.url is not None:
            self._check_server()

    def _check_server(self) -> None:
        require(
            self.server.reload != "none" or self.server.off_policy,
            "rollout.server.reload",
            self.server.reload,
            "the server would keep its weights while the model learns; set it to 'folder', or "
            "rollout.server.off_policy to train like that",
        )
        # SGLang's log-probabilities are those from before it leaves tokens out.
        if self.server.engine == "sglang":
            require(self.top_p == 1, "rollout.top_p", self.top_p, "must be 1 with SGLang")
            require(self.top_k == 0, "rollout.top_k", self.top_k, "must be 0 with SGLang")


@dataclass(frozen=True, kw_only=True)
class Eval(Sampling):
    """Held-out evaluation: before, during and after training, or as a job."""

    SECTION: ClassVar[str] = "eval."

    temperature: float = 0.6
    """Temperature of the softmax; 0 takes the likeliest token."""
    top_p: float = 0.95
    """Draws from the smallest set of tokens that holds this probability; 1 is off."""
    every: int = 10
    """Training steps between evaluations; 0 has none between the first and the last."""
    at_ends: bool = True
    """Whether a training also evaluates before its first and after its last step. False, with
    every=0, evaluates nothing."""
    k: int = 4
    """Completions of each example, for avg@k, pass@k and maj@k."""
    examples: int = 100
    """Number of held-out examples evaluated, taken from the first; 0 uses all."""
    batch: int = 64
    """Examples sampled at the same time."""
    seed: int = 0
    """Seed of sampling."""
    fork_rate: bool = False
    """Count the forks of the answers too (docs/metrics.md): the positions where the model keeps
    several continuations open. Costs one forward pass over the answers, by the local sampler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 0, "eval.every", self.every, "must not be negative")
        require_one("eval.k", self.k)
        require(self.examples >= 0, "eval.examples", self.examples, "must not be negative")
        require_one("eval.batch", self.batch)

    def check_server(self, server: Server) -> None:
        """Raises UserError where forks are to be counted and a server draws the answers."""
        require(
            server.url is None or not self.fork_rate,
            "eval.fork_rate",
            self.fork_rate,
            "needs the local sampler; set the server's url None",
        )
