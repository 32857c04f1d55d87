"""Adapters (LoRA, arXiv:2106.09685): low-rank products that are added to frozen matrices.

The trainer and the sampler both sum a matrix and its product in float32, layer by layer, and round
the sum to the compute dtype once. So both compute with the same weights, and their difference is
that of a model without adapters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.config import Lora
from sdjax.models.network.layer import OUTPUTS, LayerWeights, Shapes, cast
from sdjax.models.network.model_config import ModelConfig

Pairs = dict[str, tuple[jax.Array, jax.Array]]
"""A [..., inputs, rank] and B [..., rank, outputs] by matrix, with the matrix's own axes."""
Trained = LayerWeights | Pairs
"""The trained arrays of the layers: their weights, or their adapters."""

NAME = "adapters"
"""The name of the adapters in a model's params."""


class Adapters(nnx.Module):
    """A and B of each adapted matrix in float32, with all layers stacked. B starts at 0."""

    def __init__(self, lora: Lora, shapes: Shapes, layers: int, *, rngs: nnx.Rngs):
        for name in lora.matrices:
            shape, axes = shapes[name]
            cut = len(shape) - OUTPUTS[name]
            inputs, outputs = (layers, *shape[:cut]), (layers, lora.rank, *shape[cut:])
            a = jax.random.normal(rngs.params(), (*inputs, lora.rank), jnp.float32)
            a = a / math.sqrt(math.prod(shape[:cut]))
            b = jnp.zeros(outputs, jnp.float32)
            setattr(self, f"{name}_a", nnx.Param(a, axes=("layers", *axes[:cut], "rank")))
            setattr(self, f"{name}_b", nnx.Param(b, axes=("layers", "rank", *axes[cut:])))

    def weights(self) -> Pairs:
        """Returns the parameters as arrays."""
        return pairs(nnx.state(self))


def pairs(adapters: Mapping[str, nnx.Variable]) -> Pairs:
    """Returns the arrays A and B of each adapted matrix."""
    names = sorted(name.removesuffix("_a") for name in adapters if name.endswith("_a"))
    return {n: (adapters[f"{n}_a"].get_value(), adapters[f"{n}_b"].get_value()) for n in names}


def merged(base: LayerWeights, of: Pairs, cfg: ModelConfig) -> LayerWeights:
    """Returns one layer's weights plus its low-rank products, in the compute dtype."""
    assert cfg.lora is not None
    scale, dtype = cfg.lora.alpha / cfg.lora.rank, jnp.dtype(cfg.compute_dtype)
    sums = {}
    for name, (a, b) in of.items():
        product = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
        sums[name] = (getattr(base, name).astype(jnp.float32) + scale * product).astype(dtype)
    return replace(cast(base, dtype), **sums)


def split(params: nnx.State) -> tuple[nnx.State, nnx.State | None]:
    """Returns a model's trained params, and its frozen ones if it has adapters."""
    if NAME not in params:
        return params, None
    trained, frozen = nnx.split_state(params, lambda path, _: path[0] == NAME, ...)
    return trained, frozen


def joined(params: nnx.State, frozen: nnx.State | None) -> nnx.State:
    """Returns all params of a model. `params` wins where both have a value."""
    return params if frozen is None else nnx.merge_state(frozen, params)


def scaled(params: nnx.State, scale: float) -> nnx.State:
    """Returns all params of a model, with the products of its adapters multiplied by `scale`."""

    def one(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        if path[0] != NAME or not str(path[-1]).endswith("_b"):
            return variable
        return variable.replace(scale * variable.get_value())

    return nnx.from_flat_state([(path, one(path, v)) for path, v in nnx.to_flat_state(params)])


def without_adapters(params: nnx.State, cfg: ModelConfig) -> nnx.State:
    """Returns a model's params with its adapters added to its matrices, in the compute dtype."""
    trained, frozen = split(params)
    if frozen is None:
        return params

    def sums(trained: nnx.State, frozen: nnx.State) -> nnx.State:
        def one(both: tuple[dict, Pairs]) -> dict:
            layer = merged(LayerWeights.of(both[0]), both[1], cfg)
            by_name = vars(layer) | layer.others
            return {name: by_name[name] for name in both[0]}

        base = {name: v.get_value() for name, v in frozen["layers"].items()}
        made = jax.lax.map(one, (base, pairs(trained[NAME])))
        layers = {n: v.replace(made[n]) for n, v in frozen["layers"].items()}
        return nnx.merge_state(frozen, nnx.State({"layers": layers}))

    shardings = jax.tree.map(lambda x: x.sharding, frozen)
    return jax.jit(sums, out_shardings=shardings)(trained, frozen)


def checksum(params: nnx.State) -> str:
    """Returns a hash of the values, which is the same on any mesh.

    It sums integers that wrap around, because such a sum does not depend on its order.
    """

    def one(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            count = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * jnp.uint32(2_654_435_761) + count
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    sums = jax.device_get(jax.jit(lambda p: jax.tree.map(one, p))(params))
    lines = [f"{path} {int(v.get_value())}" for path, v in sorted(nnx.to_flat_state(sums))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
