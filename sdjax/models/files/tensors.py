"""The tensors of a checkpoint: their Hugging Face names, and their places in our parameters.

A Hugging Face linear layer is [outputs, inputs] with flattened heads. Ours is [inputs, outputs]
with an axis of heads. Layers are stacked along a leading axis, and so are a layer's experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.models.families.registry import family
from sdjax.models.network.model_config import ModelConfig

Reader = Callable[[str, slice, slice | None], np.ndarray]


def not_finite(params: nnx.State, dtype: str | None = None) -> list[str]:
    """Returns the names of the parameters that hold a NaN or an infinity, as `dtype` if given."""
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(_bad(params, dtype)))
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, is_bad in named if is_bad
    ]


@partial(jax.jit, static_argnames="dtype")
def _bad(params: nnx.State, dtype: str | None) -> nnx.State:
    """Returns bool[] in place of each parameter: whether it holds a NaN or an infinity."""
    return jax.tree.map(lambda x: ~jnp.isfinite(x.astype(dtype or x.dtype)).all(), params)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint, or some rows of one, which is our array `leaf[place]`."""

    name: str
    path: tuple[str, ...]
    """The leaf among our parameters."""
    layer: int | None = None
    """None: the leaf has no axis of layers."""
    expert: int | None = None
    """None: the leaf has no axis of experts."""
    shape: tuple[int, ...]
    """The shape of `leaf[place]`, without the axes of layers and experts."""
    outputs: int | None = None
    """How many trailing dimensions of `shape` are outputs of a linear layer.

    None if the tensor is no linear layer; then its order is that of the checkpoint."""
    start: int = 0
    """The first row in the checkpoint, where several of our arrays are one tensor."""

    @property
    def place(self) -> tuple[int, ...]:
        """The index of this tensor along the leaf's axes of layers and experts."""
        return tuple(i for i in (self.layer, self.expert) if i is not None)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint, of these rows alone."""
        if self.outputs is None:
            return self.shape if self.path == ("embedding",) else (math.prod(self.shape),)
        inputs, outputs = self.shape[: -self.outputs], self.shape[-self.outputs :]
        return math.prod(outputs), math.prod(inputs)

    @property
    def rows(self) -> slice:
        """The rows of the checkpoint's tensor."""
        return slice(self.start, self.start + self.stored_shape[0])

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Returns our array of `shape` in the layout of the checkpoint."""
        if self.outputs is not None:
            inputs = math.prod(self.shape[: -self.outputs])
            array = array.reshape(inputs, -1).T
        return np.ascontiguousarray(array).reshape(self.stored_shape)


def of(cfg: ModelConfig) -> list[Tensor]:
    """Returns all tensors of a model, layer by layer.

    Arrays of one name are the rows of one tensor, in the order of the layer's shapes.
    """
    table = (cfg.vocab_size, cfg.embed)
    parts = family(cfg.family)
    out = [Tensor(name="model.embed_tokens.weight", path=("embedding",), shape=table)]
    for i in range(cfg.num_layers):
        ends: dict[str, int] = {}
        for leaf, (shape, axes) in parts.layer_shapes(cfg).items():
            one = Tensor(
                name=f"model.layers.{i}.{parts.names[leaf]}",
                path=("layers", leaf),
                layer=i,
                shape=shape,
                outputs=parts.outputs.get(leaf),
                start=ends.get(parts.names[leaf], 0),
            )
            ends[parts.names[leaf]] = one.rows.stop
            if axes[0] != "experts":
                out.append(one)
                continue
            for e in range(shape[0]):
                name = one.name.format(expert=e)
                out.append(replace(one, name=name, expert=e, shape=shape[1:]))
    out.append(Tensor(name="model.norm.weight", path=("norm",), shape=(cfg.embed,)))
    if not cfg.tie_embeddings:
        out.append(Tensor(name="lm_head.weight", path=("head",), shape=table[::-1], outputs=1))
    return out


def stored_shapes(every: Iterable[Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a checkpoint by name."""
    return {t.name: (t.rows.stop, *t.stored_shape[1:]) for t in every}


def part(tensor: Tensor, read: Reader, index: tuple[slice, ...]) -> np.ndarray:
    """Returns `leaf[place][index]` of one tensor. Reads only the rows and columns that it needs.

    `index` has one slice per dimension of `tensor.shape`. `read(name, rows, columns)` returns that
    part of the stored tensor; `columns` is None for a tensor of one dimension.
    """
    index = tuple(slice(*s.indices(n)) for s, n in zip(index, tensor.shape, strict=True))
    if tensor.outputs is None:
        if len(tensor.stored_shape) == len(tensor.shape):
            return read(
                tensor.name, _below(tensor.start, index[0]), index[1] if len(index) > 1 else None
            )
        rows, inner = _leading(index, tensor.shape)
        return read(tensor.name, _below(tensor.start, rows), None).reshape(-1, *tensor.shape[1:])[
            (slice(None), *inner)
        ]
    cut = len(tensor.shape) - tensor.outputs
    rows, inner_out = _leading(index[cut:], tensor.shape[cut:])
    columns, inner_in = _leading(index[:cut], tensor.shape[:cut])
    stored = read(tensor.name, _below(tensor.start, rows), columns)
    full_out, full_in = tensor.shape[cut + 1 :], tensor.shape[1:cut]
    wide = stored.T.reshape(-1, *full_in, stored.shape[0] // math.prod(full_out), *full_out)
    return wide[(slice(None), *inner_in, slice(None), *inner_out)]


def _below(start: int, rows: slice) -> slice:
    return slice(start + rows.start, start + rows.stop)


def _leading(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, tuple[slice, ...]]:
    """Returns the rows of the flattened dimensions that hold `index`, and the inner slices."""
    inner = math.prod(shape[1:])
    return slice(index[0].start * inner, index[0].stop * inner), index[1:]
