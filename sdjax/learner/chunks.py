"""Rows of tokens in chunks of equal size, of which a scan holds one at a time."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def chunked(tree: Any, chunk_tokens: int) -> Any:
    """Returns arrays [R, C, ...] as [chunks, c, ...], the end filled up with zeros.

    Chunks are as equal as multiples of 32 allow, so that little of the last one is filling.
    """

    def split(x: jax.Array) -> jax.Array:
        length = math.prod(x.shape[:2])
        chunks = -(-length // chunk_tokens)
        size = -(-length // chunks)
        size = size if size < 32 else -(-size // 32) * 32
        flat = x.reshape(length, *x.shape[2:])
        flat = jnp.pad(flat, [(0, chunks * size - length)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(chunks, size, *x.shape[2:])

    return jax.tree.map(split, tree)


def joined(tree: Any, shape: tuple[int, ...]) -> Any:
    """Returns arrays [chunks, c, ...] as [R, C, ...]."""

    def join(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, *x.shape[2:])[: math.prod(shape)]
        return flat.reshape(*shape, *x.shape[2:])

    return jax.tree.map(join, tree)
