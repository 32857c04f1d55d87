"""What a device can do at best: matrix products and memory traffic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Rates of one device; 0 where nothing is known."""

    flops_per_s: float
    bytes_per_s: float
    source: str


MEASURED = "measured: bf16 matrix product of 8192^3, device copy (bytes read + written)"
SPEC = "spec sheet: dense bf16, memory bandwidth"

# By jax's device_kind. No figure of a spec sheet is reached, so ratios to it look worse than those
# to a measured one.
KNOWN = {
    "NVIDIA H100 80GB HBM3": (803e12, 2.91e12, MEASURED),
    "NVIDIA H200": (989e12, 4.8e12, SPEC),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12, SPEC),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12, SPEC),
    "TPU v5 lite": (197e12, 0.819e12, SPEC),
    "TPU v5e": (197e12, 0.819e12, SPEC),
    "TPU v5": (459e12, 2.765e12, SPEC),
    "TPU v5p": (459e12, 2.765e12, SPEC),
    "TPU v6 lite": (918e12, 1.64e12, SPEC),
    "TPU v6e": (918e12, 1.64e12, SPEC),
}


def known(kind: str) -> Peaks:
    """Returns the table's rates of a device kind."""
    flops, traffic, source = KNOWN.get(kind, (0.0, 0.0, f"no figures for {kind!r}"))
    return Peaks(flops_per_s=flops, bytes_per_s=traffic, source=source)


def measure(dtype: str) -> Peaks:
    """Returns the rates of the first device now: a square matrix product and a copy.

    `dtype` is that of the product. The copy's bytes are those read and those written.
    """
    cpu = jax.devices()[0].platform == "cpu"
    n, size = (1024, 2**26) if cpu else (8192, 2**28)
    # Calls in a row hide what it takes to start one: nothing beside a CPU's tens of milliseconds.
    calls = 1 if cpu else 10
    exact = jax.lax.Precision.HIGHEST if dtype == "float32" else None  # no TF32
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(dtype))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=exact))
    # A bare copy could be elided; adding 1 moves the same bytes.
    copy = jax.jit(lambda a: a + 1)
    y = jnp.zeros((size,), jnp.int32)
    return Peaks(
        flops_per_s=2 * n**3 / _seconds(product, x, calls),
        bytes_per_s=2 * y.nbytes / _seconds(copy, y, calls),
        source=f"measured in this run: {dtype} matrix product of {n}^3, copy of {y.nbytes >> 20} "
        "MiB (bytes read + written)",
    )


def _seconds(f: Callable[[jax.Array], jax.Array], x: jax.Array, calls: int) -> float:
    """Returns the median over 5 series of the seconds of one of several calls in a row."""
    jax.block_until_ready(f(x))
    series = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            out = f(x)
        jax.block_until_ready(out)
        series.append((time.perf_counter() - start) / calls)
    return statistics.median(series)
