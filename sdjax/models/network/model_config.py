"""ModelConfig: the sizes of a transformer, and the points in which model families differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sdjax.config import Lora


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Divides rotary frequencies by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """The scaling of Llama 3.1: stretches long wavelengths by `factor` and keeps short ones.

    Wavelengths between the two limits are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): a ramp over dimensions; `attention_factor` scales cos and sin."""

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (arXiv:2402.13753): a divisor of each frequency, for short rows and for long ones.

    All rows of a run take the same divisors, so that the sampler and the trainer compute the same
    function of a token's past. `ModelConfig.within` chooses them.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_positions: int
    """The longest row that the short divisors are for."""
    max_positions: int
    """The longest row that the long divisors are for."""
    attention_factor: float
    """Scales cos and sin."""
    use_long: bool


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class QueryGrowth:
    """Multiplies rotated queries by 1 + beta log(1 + floor(position / original_max_positions))."""

    beta: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary position embedding (RoPE) of a layer."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    query_growth: QueryGrowth | None = None
    """None: queries do not grow with their position."""
    share: float = 1.0
    """The share of a head's dimensions that are turned, the first ones."""


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """How one layer mixes tokens: causal attention, over the whole row or a sliding window."""

    window: int | None = None
    """How many tokens a query sees, itself included; None is all earlier tokens."""
    rope: Rope | None = Rope()
    """The rotary embedding of queries and keys; None is a layer without one (NoPE)."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of every layer, of which each token runs those that the router scores highest."""

    count: int
    per_token: int
    """How many experts a token runs."""
    width: int
    """The size of an expert's inner layer."""
    normalised: bool
    """Whether the shares of a token's experts sum to 1. Else they are parts of a softmax of all."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer. It is hashable: jitted functions take it as a static argument."""

    family: str
    """A key of FAMILIES in families/registry.py."""
    vocab_size: int
    num_layers: int
    embed: int
    mlp: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    layers: tuple[LayerKind, ...]
    """One entry per layer."""
    norm_eps: float = 1e-6
    norm_cast: Literal["before", "after"] = "before"
    """Whether a norm casts to the compute dtype before or after it multiplies by its scale."""
    norm_placement: Literal["pre", "post", "both"] = "pre"
    """pre: norms stand before each sublayer. post: after it, before the residual sum (OLMo 2).
    both: four norms per layer (Gemma 3)."""
    norm_offset: float = 0.0
    """What is added to the stored scale of every norm: 1 if a checkpoint has w of (1 + w)."""
    qk_norm: Literal["head", "full"] | None = None
    """Norm of queries and keys: None, over each head, or over all heads together."""
    qkv_bias: bool = False
    o_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """The function of the MLP's gate. gelu_tanh is the approximation of GELU by tanh."""
    tie_embeddings: bool = False
    embed_scale: float = 1.0
    """Multiplies the embeddings of tokens."""
    residual_scale: float = 1.0
    """Multiplies what each sublayer adds to the residual stream."""
    query_scale: float | None = None
    """The factor of the product of a query and a key; None is 1 / sqrt(head_dim)."""
    logits_divisor: float = 1.0
    """Divides the logits. The final norm does it, so every user of a head gets it."""
    experts: Experts | None = None
    """None: every layer has the dense MLP of size `mlp`. Else that size has no effect."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    lora: Lora | None = None
    """Adapters. With them all other parameters are frozen."""
    frozen: bool = False
    """Whether no parameter is ever trained, as of a teacher."""

    def __post_init__(self) -> None:
        assert len(self.layers) == self.num_layers, (self.num_layers, self.layers)
        assert self.num_heads % self.num_kv_heads == 0, (self.num_heads, self.num_kv_heads)
        assert self.head_dim % 2 == 0, self.head_dim

    @property
    def query_factor(self) -> float:
        """What a query is multiplied by, so that attention's own 1 / sqrt(head_dim) is right."""
        return 1.0 if self.query_scale is None else self.query_scale * self.head_dim**0.5

    @property
    def by_context(self) -> LongRopeScaling | None:
        """The scaling whose divisors depend on the longest row, if the model has one."""
        for kind in self.layers:
            scaling = kind.rope.scaling if kind.rope is not None else None
            if isinstance(scaling, LongRopeScaling) and scaling.short != scaling.long:
                if scaling.max_positions > scaling.original_max_positions:
                    return scaling
        return None

    def within(self, context: int) -> ModelConfig:
        """Returns the model for rows of at most `context` tokens."""

        def one(kind: LayerKind) -> LayerKind:
            rope = kind.rope
            if rope is None or not isinstance(rope.scaling, LongRopeScaling):
                return kind
            use_long = context > rope.scaling.original_max_positions
            scaling = replace(rope.scaling, use_long=use_long)
            return replace(kind, rope=replace(rope, scaling=scaling))

        context = min(context, self.max_positions)
        return replace(self, max_positions=context, layers=tuple(map(one, self.layers)))

    @property
    def inner(self) -> int:
        """The size of the inner layer of each MLP, or of each expert."""
        return self.mlp if self.experts is None else self.experts.width

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer."""
        return tuple(kind.window for kind in self.layers)

    @property
    def param_dtype(self) -> str:
        """The dtype of the loaded parameters: float32 to train them, else the compute dtype.

        Adapters are float32.
        """
        trained = self.lora is None and not self.frozen
        return "float32" if trained else self.compute_dtype
