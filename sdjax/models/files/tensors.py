"""The tensors of a checkpoint: their Hugging Face names, and where they stand in our parameters.

A Hugging Face linear layer is [outputs, inputs] with heads flattened; ours is [inputs, outputs]
with an axis for heads, and all layers stacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdjax.models.families.registry import family
from sdjax.models.network.layer import OUTPUTS
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import layer_shapes

Reader = Callable[[str, slice, slice | None], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint. `shape` is that of our leaf, without its axis of layers."""

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]

    @property
    def outputs(self) -> int | None:
        """How many trailing dimensions of `shape` are outputs of a linear layer, if it is one.

        A leaf that is none keeps its order.
        """
        return OUTPUTS.get(self.path[-1])

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        if self.outputs is None:
            return self.shape if self.path == ("embedding",) else (math.prod(self.shape),)
        inputs, outputs = self.shape[: -self.outputs], self.shape[-self.outputs :]
        return math.prod(outputs), math.prod(inputs)

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Returns our array of `shape` as it stands in a checkpoint."""
        if self.outputs is not None:
            inputs = math.prod(self.shape[: -self.outputs])
            array = array.reshape(inputs, -1).T
        return np.ascontiguousarray(array).reshape(self.stored_shape)


def of(cfg: ModelConfig) -> list[Tensor]:
    """Returns all tensors of a model, layer by layer."""
    table = (cfg.vocab_size, cfg.embed)
    names = family(cfg.family).NAMES
    out = [Tensor(name="model.embed_tokens.weight", path=("embedding",), layer=None, shape=table)]
    for i in range(cfg.num_layers):
        for leaf, (shape, _) in layer_shapes(cfg).items():
            name = f"model.layers.{i}.{names[leaf]}"
            out.append(Tensor(name=name, path=("layers", leaf), layer=i, shape=shape))
    out.append(Tensor(name="model.norm.weight", path=("norm",), layer=None, shape=(cfg.embed,)))
    if not cfg.tie_embeddings:
        head = Tensor(name="lm_head.weight", path=("head",), layer=None, shape=table[::-1])
        out.append(head)
    return out


def part(tensor: Tensor, read: Reader, index: tuple[slice, ...]) -> np.ndarray:
    """Returns `leaf[index]` of one tensor, reading no more rows and columns than it needs.

    `index` has a slice for each dimension of `tensor.shape`; `read(name, rows, columns)` returns
    that part of the stored tensor, `columns` None for a tensor of one dimension.
    """
    index = tuple(slice(*s.indices(n)) for s, n in zip(index, tensor.shape, strict=True))
    if tensor.outputs is None:
        if len(tensor.stored_shape) == len(tensor.shape):
            return read(tensor.name, index[0], index[1] if len(index) > 1 else None)
        rows, inner = _leading(index, tensor.shape)
        return read(tensor.name, rows, None).reshape(-1, *tensor.shape[1:])[(slice(None), *inner)]
    cut = len(tensor.shape) - tensor.outputs
    rows, inner_out = _leading(index[cut:], tensor.shape[cut:])
    columns, inner_in = _leading(index[:cut], tensor.shape[:cut])
    stored = read(tensor.name, rows, columns)
    full_out, full_in = tensor.shape[cut + 1 :], tensor.shape[1:cut]
    wide = stored.T.reshape(-1, *full_in, stored.shape[0] // math.prod(full_out), *full_out)
    return wide[(slice(None), *inner_in, slice(None), *inner_out)]


def _leading(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, tuple[slice, ...]]:
    """Returns the rows of the flattened dimensions that hold `index`, and what is left to cut."""
    inner = math.prod(shape[1:])
    return slice(index[0].start * inner, index[0].stop * inner), index[1:]
