"""The sections of the loss: the divergence and the policy gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_finite, require_one


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The minimised loss: (1 - distillation) x policy gradient + distillation x divergence."""

    distillation: float = 1.0
    """Share of the divergence in the loss. 1 is SDPO, 0 is GRPO, values between blend the two. At 0
    the teacher does not run."""
    divergence: str = field(
        default="full", metadata={"table": "sdjax.objectives.divergences:DIVERGENCES"}
    )
    """A name in `sdjax.objectives.divergences.DIVERGENCES`; --help lists them."""
    alpha: float = 0.5
    """Which divergence. 0: forward KL(teacher || student). 1: reverse KL(student || teacher).
    Between: generalised Jensen-Shannon."""
    top_k: int = 100
    """divergence=top_k: number of tokens kept."""
    top_k_by: Literal["student", "teacher"] = "student"
    """divergence=top_k: whose likeliest tokens are kept."""
    tail: bool = True
    """divergence=top_k: True puts all other tokens into one more bin; False renormalises the kept
    ones."""
    scale: Literal["continuous", "reference"] = "continuous"
    """For 0 < alpha < 1. reference: the plain mixture form, which tends to 0 at both ends.
    continuous: the same divided by alpha (1 - alpha), which tends to the two KLs."""
    token_clip: float | None = None
    """Upper bound of the divergence at one token, or of its coefficient with divergence=sampled;
    None is off."""
    pointwise_clip: float | None = None
    """Upper bound of one vocabulary entry's share of the divergence; None is off. Shares are never
    negative with scale=continuous; with scale=reference they are plain p log(p/q)."""
    importance_clip: float | None = 2.0
    """Upper bound of the ratio of current to old probability, which scales a token's divergence.
    None leaves the ratio out."""
    sampler_clip: float | None = 2.0
    """Upper bound of the ratio of trainer to sampler probability (truncated importance sampling).
    None leaves the ratio out."""
    token_weights: str = field(
        default="uniform", metadata={"table": "sdjax.objectives.token_weights:TOKEN_WEIGHTS"}
    )
    """A name in `sdjax.objectives.token_weights.TOKEN_WEIGHTS`; --help lists them."""
    weight_floor: float = 0.25
    """token_weights=position or teacher_entropy: the smallest weight."""
    position_center: float = 0.3
    """token_weights=position: place in a completion, from 0 to 1, where the weight has risen half
    way."""
    position_width: float = 0.1
    """token_weights=position: width of the rise, as a share of the completion. Larger is more
    gradual."""
    entropy_scale: float = 1.0
    """token_weights=teacher_entropy: entropy in nats over which the weight falls by a factor of
    e."""
    entropy_gate: float = 0.1
    """token_weights=anti: a token has weight 0 where the teacher's entropy is below this many
    nats."""
    epistemic_weight: float = 0.0
    """token_weights=epistemic: weight of the tokens in epistemic words; 0 masks them."""
    learn_from: str = field(
        default="all", metadata={"table": "sdjax.objectives.learn_from:LEARN_FROM"}
    )
    """Completions and tokens that the divergence learns from: a name in
    `sdjax.objectives.learn_from.LEARN_FROM`; --help lists them."""
    learn_share: float = 0.3
    """learn_from=early or late: share of a completion's tokens."""
    pivotal_gap: float = 0.8
    """learn_from=pivotal: least log-ratio of student to teacher at a pivotal token, in nats."""
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    """How tokens are averaged. sequence: mean over the tokens of each completion, then over
    completions. token: mean over all tokens. constant: each completion's sum divided by
    constant_length, then mean over completions (Dr.GRPO)."""
    constant_length: int = 1024
    """aggregation=constant: the tokens that each completion's sum is divided by."""
    average_over: Literal["all", "distilled"] = "all"
    """Completions in the divergence's mean. all: every completion, as in the reference; completions
    without a demonstration or feedback make the update smaller. distilled: only completions that
    have one."""
    chunk_tokens: int = 2048
    """Positions whose logits exist at the same time on each data shard. Changes memory, not
    results."""

    def __post_init__(self) -> None:
        require_finite(self, "loss.")
        require(0 <= self.distillation <= 1, "loss.distillation", self.distillation, "in [0, 1]")
        require(0 <= self.alpha <= 1, "loss.alpha", self.alpha, "must lie in [0, 1]")
        require_one("loss.top_k", self.top_k)
        require_one("loss.chunk_tokens", self.chunk_tokens)
        require(0 < self.learn_share <= 1, "loss.learn_share", self.learn_share, "in (0, 1]")
        require(0 <= self.weight_floor <= 1, "loss.weight_floor", self.weight_floor, "in [0, 1]")
        require(
            self.epistemic_weight >= 0,
            "loss.epistemic_weight",
            self.epistemic_weight,
            "must not be negative",
        )
        require_one("loss.constant_length", self.constant_length)
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
    """The policy gradient part of the loss. The defaults are the paper's GRPO."""

    advantage: Literal["mean", "mean_std"] = "mean"
    """mean: each reward minus the mean of its group. mean_std: the same divided by the group's
    standard deviation."""
    credit: str = field(default="advantage", metadata={"table": "sdjax.objectives.credits:CREDITS"})
    """How the tokens of a completion share in its advantage, and what they have besides: a name in
    `sdjax.objectives.credits.CREDITS`; --help lists them."""
    credit_strength: float = 1.0
    """Size of what a credit adds or changes; 1 is the value of its paper."""
    credit_share: float = 0.2
    """credit=unlikely: share of the update's tokens that are unlikely."""
    clip_low: float = 0.2
    """The ratio of new to old probability is clipped below at 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio of new to old probability is clipped above at 1 + clip_high."""
    dual_clip: float | None = 3.0
    """Upper bound of the loss where the advantage is negative, as a multiple of the advantage's
    size; None is off."""
    ratio: Literal["token", "sequence"] = "token"
    """token: one ratio per token. sequence: one length-normalised ratio per completion (GSPO,
    arXiv:2507.18071)."""
    overlong_buffer: int = 0
    """Tokens before the length limit over which the reward falls (DAPO, arXiv:2503.14476); 0 is
    off."""
    overlong_penalty: float = 1.0
    """Reward that a completion loses when it reaches the length limit."""

    def __post_init__(self) -> None:
        require_finite(self, "policy.")
        require(0 < self.credit_share <= 1, "policy.credit_share", self.credit_share, "in (0, 1]")
        require(
            self.overlong_buffer >= 0,
            "policy.overlong_buffer",
            self.overlong_buffer,
            "must not be negative",
        )
        require(0 <= self.clip_low <= 1, "policy.clip_low", self.clip_low, "must lie in [0, 1]")
        require(self.clip_high >= 0, "policy.clip_high", self.clip_high, "must not be negative")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            "policy.dual_clip",
            self.dual_clip,
            "must be over 1 or None",
        )
