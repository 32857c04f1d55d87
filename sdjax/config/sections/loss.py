"""The sections that describe the loss: the divergence and the policy gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdjax.config.checks import require, require_one


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: (1 - distillation) x policy gradient + distillation x divergence."""

    distillation: float = 1.0
    """1 is SDPO, 0 is GRPO, between them a blend. At 0 the teacher is not run."""
    divergence: str = field(
        default="full", metadata={"table": "sdjax.objectives.divergences:DIVERGENCES"}
    )
    """A name in DIVERGENCES of objectives/divergences.py; --help lists them."""
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
    token_weights: str = field(
        default="uniform", metadata={"table": "sdjax.objectives.token_weights:TOKEN_WEIGHTS"}
    )
    """A name in TOKEN_WEIGHTS of objectives/token_weights.py; --help lists them."""
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
        require_one("loss.top_k", self.top_k)
        require_one("loss.chunk_tokens", self.chunk_tokens)
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
