"""Kernels of a decoding step on a GPU (Pallas, through Triton). Each takes one device's rows.

A step has little work and is bound by memory. The kernels save launches, and every block of theirs
reads memory from its start. Triton's tiles have sizes that are powers of two, and its products
have at least 16 rows. Smaller inputs are padded or masked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

SMALLEST = 16  # rows of a product
NOTHING = -1e30  # the score of a masked slot; minus infinity would give NaN less itself
LOG2_E = 1.4426950408889634

SLOTS = 64  # slots in a tile of the cache
BLOCKS = 512  # so many blocks keep a GPU with 132 processors (H100, H200) reading
COLUMNS = 64  # columns in a tile of a matrix

Pair = tuple[jax.Array, jax.Array]
"""The two halves of head_dim, which the rotation turns into each other."""


def attend(
    parts: jax.Array,
    norms: tuple[jax.Array | None, jax.Array | None],
    rope: tuple[jax.Array, jax.Array],
    cache: tuple[jax.Array, jax.Array],
    index: jax.Array,
    *,
    eps: float,
    window: int | None,
    query_factor: float = 1.0,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the attention's output [B, H, h], and the cache's keys and values.

    Queries and keys are normed and rotated first. Row b writes its new token to slot `index[b]`
    and attends to that slot and the slots before it. A row whose index lies beyond the cache
    writes nothing and still sees its new token.

    One block reads the cache of one row and KV head. For few rows, several blocks share one row
    (split-KV decoding, as in Flash-Decoding).

    Args:
        parts: float32[S, B, H + 2 K, h]. Their sum over S is queries, keys and values.
        norms: The scales of the norms of queries and of keys, [h] each, or None twice.
        rope: cos and sin, float32[B, h // 2] each.
        cache: Keys and values, [B, C, K, h] each.
        index: int32[B].
        eps: The epsilon of the norms.
        window: How many of the last tokens a query sees, itself included; None is all.
        query_factor: Multiplies the rotated queries.
        interpret: Runs the kernel without a GPU, slowly.
    """
    keys, values = cache
    rows, _, kv_heads, h = keys.shape
    heads = parts.shape[2] - 2 * kv_heads
    shares = 1
    while rows * kv_heads * shares < BLOCKS and shares * 2 * SLOTS <= keys.shape[1]:
        shares *= 2
    normed = norms[0] is not None
    scales = norms if normed else (jnp.ones(h, keys.dtype),) * 2  # not read
    kernel = partial(
        _attend,
        eps=eps if normed else None,
        group=heads // kv_heads,
        window=window,
        query_factor=query_factor,
    )
    out, weight, keys, values = pl.pallas_call(
        kernel,
        grid=(rows, kv_heads, shares),
        out_shape=(
            jax.ShapeDtypeStruct(
                (shares, rows, heads, h), keys.dtype if shares == 1 else jnp.float32
            ),
            jax.ShapeDtypeStruct((shares, rows, heads), jnp.float32),
            jax.ShapeDtypeStruct(keys.shape, keys.dtype),
            jax.ShapeDtypeStruct(values.shape, values.dtype),
        ),
        input_output_aliases={6: 2, 7: 3},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="attend",
    )(parts, *scales, *rope, index, keys, values)
    if shares > 1:
        share = jnp.exp2(weight - weight.max(0))
        share = share / share.sum(0)
        out = (out * share[..., None]).sum(0, keepdims=True).astype(keys.dtype)
    return out[0], keys, values


def _attend(
    parts: Any,
    q_norm: Any,
    k_norm: Any,
    cos: Any,
    sin: Any,
    index: Any,
    keys_before: Any,  # the same memory as keys
    values_before: Any,
    out: Any,
    weight: Any,
    keys: Any,
    values: Any,
    *,
    eps: float | None,
    group: int,
    window: int | None,
    query_factor: float,
) -> None:
    """Computes one row, one KV head and a share of the row's slots.

    `attend` documents the inputs; `group` is query heads per KV head, and `eps` None is no norms.
    """
    row, kv, share = (pl.program_id(i) for i in range(3))
    slots, kv_heads, h = keys.shape[1:]
    dtype, shares = keys.dtype, out.shape[0]
    heads = parts.shape[2] - 2 * kv_heads
    halves = pl.ds(0, h // 2), pl.ds(h // 2, h // 2)
    queries = max(SMALLEST, pl.next_power_of_2(group))
    real = (jnp.arange(queries) < group)[:, None]
    of_group = pl.ds(kv * group, queries)
    slot = index[row]

    def whole(at: Any, mask: jax.Array | None = None) -> Pair:
        def half(of: Any) -> jax.Array:
            total = jnp.zeros((), jnp.float32)
            for i in map(jnp.int32, range(parts.shape[0])):
                piece = parts.at[i, row, at, of]
                total += triton.load(piece, mask=mask, other=None if mask is None else 0.0)
            return total

        return half(halves[0]), half(halves[1])

    def turned(pair: Pair, norm: Any, factor: float = 1.0) -> Pair:
        a, b = pair
        if eps is not None:
            squares = jnp.sum(a * a, -1, keepdims=True) + jnp.sum(b * b, -1, keepdims=True)
            inverse = jax.lax.rsqrt(squares / h + eps)
            a = a * inverse * norm[halves[0]].astype(jnp.float32)
            b = b * inverse * norm[halves[1]].astype(jnp.float32)
        c, s = cos[row, :], sin[row, :]
        a, b = a * c - b * s, b * c + a * s
        if factor != 1.0:
            a, b = a * factor, b * factor
        return a.astype(dtype), b.astype(dtype)

    q = turned(whole(of_group, real), q_norm, query_factor)
    new_key = turned(whole(heads + kv), k_norm)
    a, b = whole(heads + kv_heads + kv)
    new_value = a.astype(dtype), b.astype(dtype)

    @pl.when((share == 0) & (slot < slots))
    def _() -> None:
        for half, key, value in zip(halves, new_key, new_value, strict=True):
            keys[row, slot, kv, half], values[row, slot, kv, half] = key, value

    end = jnp.minimum(slot, slots)
    start = 0 if window is None else jnp.maximum(slot + 1 - window, 0)
    scale = h**-0.5 * LOG2_E

    def tile(i: jax.Array, carry: tuple) -> tuple:
        """Adds a tile of slots to the softmax so far: its largest score, sum and values."""
        most, total, *sums = carry
        at = i * SLOTS + jnp.arange(SLOTS)
        seen = (at >= start) & (at < end)

        def load(ref: Any, half: Any) -> jax.Array:
            here = ref.at[row, pl.ds(i * SLOTS, SLOTS), kv, half]
            return triton.load(here, mask=seen[:, None], other=0.0)

        low, high = (
            triton.dot(x, load(keys_before, half).T) for x, half in zip(q, halves, strict=True)
        )
        scores = jnp.where(seen[None], (low + high) * scale, NOTHING)
        new = jnp.maximum(most, jnp.max(scores, -1))
        weights, kept = jnp.exp2(scores - new[:, None]), jnp.exp2(most - new)
        total = total * kept + jnp.sum(weights, -1)
        more = (triton.dot(weights.astype(dtype), load(values_before, half)) for half in halves)
        sums = [x * kept[:, None] + y for x, y in zip(sums, more, strict=True)]
        return new, total, *sums

    # The first share starts with the new token. It is not read from the cache, because another
    # block may not have written it yet.
    first = share == 0
    score = sum(
        jnp.sum(x.astype(jnp.float32) * key.astype(jnp.float32), -1)
        for x, key in zip(q, new_key, strict=True)
    )
    most = jnp.where(first, score * scale, NOTHING)
    total = jnp.where(first, jnp.ones(queries), 0.0)
    sums = [
        jnp.where(first, jnp.zeros((queries, h // 2)) + value.astype(jnp.float32), 0.0)
        for value in new_value
    ]
    tiles = start // SLOTS, pl.cdiv(end, SLOTS)
    each = pl.cdiv(tiles[1] - tiles[0], shares)
    low = tiles[0] + share * each
    high = jnp.minimum(tiles[1], low + each)
    most, total, *sums = jax.lax.fori_loop(low, high, tile, (most, total, *sums))
    total = jnp.maximum(total, 1e-30)  # a share may have no slots
    for half, x in zip(halves, sums, strict=True):
        here = out.at[share, row, of_group, half]
        triton.store(here, (x / total[:, None]).astype(out.dtype), mask=real)
    if shares > 1:
        triton.store(weight.at[share, row, of_group], most + jnp.log2(total), mask=real[:, 0])


def fits_gate_up(rows: int, embed: int, mlp: int) -> bool:
    """Returns whether `gate_up` takes these sizes on this device.

    A block prefetches up to 196 KiB, which fits only on data centre GPUs (compute capability 9 and
    10). A device without a compute capability interprets the kernel and takes every size that
    divides.
    """
    capability = getattr(jax.devices()[0], "compute_capability", "9.0")
    roomy = capability.split(".")[0] in ("9", "10")
    return roomy and rows <= 256 and embed % 64 == 0 and mlp % COLUMNS == 0


def gate_up(
    x: jax.Array,  # [B, embed]
    gate: jax.Array,  # [embed, mlp]
    up: jax.Array,  # [embed, mlp]
    *,
    interpret: bool = False,
) -> jax.Array:
    """Returns silu(x @ gate) * (x @ up), [B, mlp], rounded as layer.gated does.

    `fits_gate_up` says which sizes it takes.
    """
    rows, embed = x.shape
    padded = max(SMALLEST, pl.next_power_of_2(rows))
    few = padded <= 64
    inner = 128 if few and embed % 128 == 0 else 64  # rows of a matrix in a tile
    columns = pl.BlockSpec((embed, COLUMNS), lambda j: (0, j))
    out = pl.pallas_call(
        partial(_gate_up, inner=inner),
        grid=(gate.shape[1] // COLUMNS,),
        in_specs=[pl.BlockSpec((padded, embed), lambda j: (0, 0)), columns, columns],
        out_specs=pl.BlockSpec((padded, COLUMNS), lambda j: (0, j)),
        out_shape=jax.ShapeDtypeStruct((padded, gate.shape[1]), x.dtype),
        compiler_params=triton.CompilerParams(num_warps=4 if few else 8, num_stages=4),
        interpret=interpret,
        name="gate_up",
    )(jnp.pad(x, ((0, padded - rows), (0, 0))), gate, up)
    return out[:rows]


def _gate_up(x: Any, gate: Any, up: Any, out: Any, *, inner: int) -> None:
    def tile(i: jax.Array, sums: Pair) -> Pair:
        at = pl.ds(i * inner, inner)
        some = x[:, at]
        return sums[0] + triton.dot(some, gate[at, :]), sums[1] + triton.dot(some, up[at, :])

    zero = jnp.zeros(out.shape, jnp.float32)
    sums = jax.lax.fori_loop(0, x.shape[1] // inner, tile, (zero, zero))
    g, u = (y.astype(x.dtype).astype(jnp.float32) for y in sums)  # rounded as in training
    out[...] = (g * jax.nn.sigmoid(g) * u).astype(out.dtype)
