"""Experts: an MLP of many, of which each token runs those that its router scores highest.

One function, `computed`, has three ways with the same numbers. Every way computes every route that
the router drew: no expert has a capacity, so no token is dropped and no token changes another.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.config import Lora
from sdjax.errors import UserError
from sdjax.models.network import layer
from sdjax.models.network.attention import precision, product
from sdjax.models.network.layer import LayerWeights, wide_product
from sdjax.models.network.model_config import Experts, ModelConfig
from sdjax.parallel import rules

Way = Literal["dense", "grouped", "tokamax"]

ROUTER = "router"
"""The name of the router's matrix [embed, experts] in a layer's shapes."""
HOPPER = "9.0"
"""The compute capability of GPUs on which tokamax's product was faster than XLA's."""


def layer_shapes(cfg: ModelConfig) -> layer.Shapes:
    """Returns shape and logical axes of every array of one layer whose MLP is experts."""
    assert cfg.experts is not None
    how, d = cfg.experts, cfg.embed
    inward = (how.count, d, how.width), ("experts", None, "mlp")
    return {
        **layer.layer_shapes(cfg),
        "gate": inward,
        "up": inward,
        "down": ((how.count, how.width, d), ("experts", "mlp", None)),
        ROUTER: ((d, how.count), ("embed", None)),
    }


def check_adapters(lora: Lora | None) -> None:
    """Raises UserError for adapters of experts, which do not exist."""
    of_experts = [name for name in lora.matrices if name in ("gate", "up", "down")] if lora else []
    if of_experts:
        raise UserError(
            f"lora.matrices names {', '.join(of_experts)}: experts get no adapters: name some of "
            "q, k, v, o"
        )


def choose(platform: str, capability: str = "", *, tokamax: bool) -> Way:
    """Returns the way that is fastest on a platform: "cpu", "gpu" or "tpu".

    XLA's grouped product on a CPU computes every expert for every token too, and is slower.

    Args:
        platform: As jax names it.
        capability: The compute capability of a GPU.
        tokamax: Whether that package is installed.
    """
    if platform == "cpu":
        return "dense"
    known = platform == "tpu" or capability == HOPPER
    return "tokamax" if tokamax and known else "grouped"


def chosen(cfg: ModelConfig) -> Way:
    """Returns the way of a model on this machine, or on the TPU that it is compiled for."""
    # A plan compiles for a TPU on a machine without one, and says so by the attention it asks for.
    platform = "tpu" if cfg.attention == "splash" else jax.default_backend()
    device = jax.devices()[0]
    installed = importlib.util.find_spec("tokamax") is not None
    return choose(platform, str(getattr(device, "compute_capability", "")), tokamax=installed)


def mlp(x: jax.Array, w: LayerWeights, cfg: ModelConfig) -> jax.Array:
    """Returns float32[B, S, embed], the sum of the experts of each token of x [B, S, embed].

    On a mesh each device routes its own tokens. The devices along `expert` then gather each other's
    tokens, compute the experts that they hold, and sum the results; tokens move instead of
    matrices. Over fsdp, matrices are gathered, as those of other layers are.
    """
    assert cfg.experts is not None
    how = cfg.experts
    way, split = chosen(cfg), rules.shards("expert") > 1

    def shard(x: jax.Array, router: jax.Array, *matrices: jax.Array) -> jax.Array:
        tokens = x.reshape(-1, x.shape[-1])
        share, index = routes(tokens, router, how)
        if split:
            of_all = partial(jax.lax.all_gather, axis_name="expert", tiled=True)
            tokens, share, index = of_all(tokens), of_all(share), of_all(index)
            index = index - jax.lax.axis_index("expert") * matrices[0].shape[0]
        out = computed(tokens, share, index, matrices, way)
        if split:
            out = jax.lax.psum_scatter(out, "expert", tiled=True)
        if rules.shards("tensor") > 1:
            out = jax.lax.psum(out, "tensor")
        return out.reshape(x.shape)

    inputs = (x, w.others[ROUTER], w.gate, w.up, w.down)
    if jax.sharding.get_abstract_mesh().empty:
        return shard(*inputs)
    rows, whole = rules.spec(("batch", None, None)), rules.spec((None, None))
    columns = rules.spec(("held_experts", None, "mlp"))
    down = rules.spec(("held_experts", "mlp", None))
    specs = (rows, whole, columns, columns, down)
    return jax.shard_map(shard, in_specs=specs, out_specs=rows, check_vma=False)(*inputs)


def routes(x: jax.Array, router: jax.Array, how: Experts) -> tuple[jax.Array, jax.Array]:
    """Returns the share and the number of each expert that a token runs, [T, per_token] each.

    The softmax over all experts and the shares are float32. `x` is [T, embed], and `router` is
    [embed, experts].
    """
    scores = jax.nn.softmax(wide_product("td,de->te", x, router))
    share, index = jax.lax.top_k(scores, how.per_token)
    if how.normalised:
        share = share / share.sum(-1, keepdims=True)
    return share, index


def computed(
    x: jax.Array,
    share: jax.Array,
    index: jax.Array,
    matrices: tuple[jax.Array, ...],
    way: Way,
) -> jax.Array:
    """Returns float32[T, embed]: the outputs of each token's experts, weighted by their shares.

    An expert computes down(silu(gate(x)) * up(x)).

    Args:
        x: [T, embed].
        share: float32[T, per_token].
        index: int32[T, per_token], experts. A number outside 0 .. E - 1 is an expert that another
            device has; it adds nothing.
        matrices: gate [E, embed, width], up [E, embed, width] and down [E, width, embed].
        way: dense computes every expert for every token. grouped sorts the tokens by expert and
            multiplies each group by its matrix, by XLA; tokamax does so by that package's kernel.
    """
    if way == "dense":
        return _dense(x, share, index, matrices)
    return _grouped(x, share, index, matrices, way)


def _dense(
    x: jax.Array, share: jax.Array, index: jax.Array, matrices: tuple[jax.Array, ...]
) -> jax.Array:
    gate, up, down = matrices
    one_hot = jax.nn.one_hot(index, gate.shape[0], dtype=jnp.float32)
    weight = (one_hot * share[..., None]).sum(1)
    inner = jax.nn.silu(product("td,edf->etf", x, gate).astype(jnp.float32))
    inner = (inner * product("td,edf->etf", x, up)).astype(x.dtype)
    out = wide_product("etf,efd->etd", inner, down)
    return product("te,etd->td", weight, out)


def _grouped(
    x: jax.Array, share: jax.Array, index: jax.Array, matrices: tuple[jax.Array, ...], way: Way
) -> jax.Array:
    gate, up, down = matrices
    tokens, count = index.shape
    flat = index.reshape(-1)
    # Routes to experts of other devices come last, in no group. No way must compute them, so
    # what is in their rows has no meaning.
    group = jnp.where((flat >= 0) & (flat < len(gate)), flat, len(gate))
    order = jnp.argsort(group)
    ends = jnp.searchsorted(group[order], jnp.arange(len(gate) + 1))
    sizes, mine = jnp.diff(ends).astype(jnp.int32), (jnp.arange(len(flat)) < ends[-1])[:, None]
    # Copies are permuted, because the gradient of a permutation adds nothing up, in any order.
    copies = jnp.broadcast_to(x[:, None], (tokens, count, x.shape[-1])).reshape(-1, x.shape[-1])
    rows = jnp.where(mine, copies.at[order].get(unique_indices=True), 0)
    inner = jax.nn.silu(_product(way, None, rows, gate, sizes).astype(jnp.float32))
    inner = jnp.where(mine, inner * _product(way, None, rows, up, sizes), 0).astype(x.dtype)
    out = jnp.where(mine, _wide(way, inner, down, sizes), 0)
    out = out.at[jnp.argsort(order)].get(unique_indices=True).reshape(tokens, count, -1)
    return (out * share[..., None]).sum(1)


def _product(
    way: Way, dtype: jnp.dtype | None, x: jax.Array, w: jax.Array, sizes: jax.Array
) -> jax.Array:
    """Returns the product of each group of rows with its own matrix, [rows, outputs].

    Args:
        way: grouped or tokamax.
        dtype: That of the result, by default that of `x`; sums are float32.
        x: [rows, inputs], sorted by group. Rows after the last group have any value in the result.
        w: [groups, inputs, outputs].
        sizes: int32[groups], the rows of each group.
    """
    if way == "tokamax":
        import tokamax

        ragged_dot = tokamax.ragged_dot
    else:
        ragged_dot = jax.lax.ragged_dot
    return ragged_dot(
        x, w, sizes, precision=precision(x.dtype), preferred_element_type=dtype or x.dtype
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(way: Way, x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns `_product` in float32, with its gradient in the dtype of `x`, as `wide_product`."""
    return _product(way, jnp.float32, x, w, sizes)


def _wide_forward(way: Way, x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple:
    return _product(way, jnp.float32, x, w, sizes), (x, w, sizes)


def _wide_backward(way: Way, saved: tuple, g: jax.Array) -> tuple:
    x, w, sizes = saved
    _, pull = jax.vjp(lambda x, w: _product(way, None, x, w, sizes), x, w)
    return (*pull(g.astype(x.dtype)), None)


_wide.defvjp(_wide_forward, _wide_backward)
