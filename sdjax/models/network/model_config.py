"""What a transformer is: sizes, and the few points in which the families differ. No jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config import Lora


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rotary frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths stretched by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): a ramp over dimensions, and cos and sin times `attention_factor`."""

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of a layer."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer; hashable, so that jitted functions take it as static.

    `windows` has one entry a layer: how many tokens, itself included, a token sees; None is all.
    """

    family: str
    vocab_size: int
    num_layers: int
    embed: int
    mlp: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    windows: tuple[int | None, ...]
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window_rope: Rope | None = None
    """Rotary embedding of layers with a window where it is another one (Olmo 3)."""
    norm_eps: float = 1e-6
    norm_cast: Literal["before", "after"] = "before"
    """Whether a norm casts to the compute dtype before or after it multiplies by its scale."""
    norm_placement: Literal["pre", "post"] = "pre"
    """pre: norms of a sublayer's input; post: of its output, before the residual sum (Olmo 2)."""
    qk_norm: Literal["head", "full"] | None = None
    """Norm of queries and keys: none, over each head, or over all heads together."""
    qkv_bias: bool = False
    o_bias: bool = False
    tie_embeddings: bool = False
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    lora: Lora | None = None
    """Adapters; then all other parameters are frozen."""

    def __post_init__(self) -> None:
        assert len(self.windows) == self.num_layers, self.windows
        assert self.num_heads % self.num_kv_heads == 0, (self.num_heads, self.num_kv_heads)
        assert self.head_dim % 2 == 0, self.head_dim

    @property
    def param_dtype(self) -> str:
        """Of the parameters that are loaded: float32 to be trained, or as they are computed with.

        Adapters are float32.
        """
        return "float32" if self.lora is None else self.compute_dtype

    @property
    def full_rope(self) -> Rope:
        """The rotary embedding of every layer that `window_rope` does not change."""
        return Rope(theta=self.rope_theta, scaling=self.rope_scaling)

    def rope(self, layer: int) -> Rope:
        """Returns the rotary embedding of a layer."""
        windowed = self.windows[layer] is not None
        return self.window_rope if windowed and self.window_rope else self.full_rope
