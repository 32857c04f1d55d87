"""Peak rates of a device: matrix products and memory traffic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Rates of one device; 0 where a rate is unknown."""

    flops_per_s: float
    bytes_per_s: float
    source: str


MEASURED = "measured: bf16 matrix product of 8192^3, device copy (bytes read + written)"
SPEC = "spec sheet: dense bf16, memory bandwidth"

# The key is jax's device_kind. No device reaches the figures of its spec sheet, so ratios to those
# look worse than ratios to measured figures.
KNOWN = {
    "NVIDIA H100 80GB HBM3": (803e12, 2.91e12, MEASURED),
    "NVIDIA H200": (989e12, 4.8e12, SPEC),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12, SPEC),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12, SPEC),
    "TPU v4": (275e12, 1.228e12, SPEC),
    "TPU v5 lite": (197e12, 0.819e12, SPEC),
    "TPU v5e": (197e12, 0.819e12, SPEC),
    "TPU v5": (459e12, 2.765e12, SPEC),
    "TPU v5p": (459e12, 2.765e12, SPEC),
    "TPU v6 lite": (918e12, 1.64e12, SPEC),
    "TPU v6e": (918e12, 1.64e12, SPEC),
    "TPU7x": (1153.5e12, 3.69e12, SPEC),  # half a chip, because a chip is two devices
}


def known(kind: str) -> Peaks:
    """Returns the rates of a device kind in KNOWN."""
    flops, traffic, source = KNOWN.get(kind, (0.0, 0.0, f"no figures for {kind!r}"))
    return Peaks(flops_per_s=flops, bytes_per_s=traffic, source=source)


def measure(dtype: str) -> Peaks:
    """Measures the rates of the first device with a square matrix product and a copy.

    `dtype` is the type of the product. The bytes of the copy are those read and those written.
    """
    cpu = jax.devices()[0].platform == "cpu"
    n, size = (1024, 2**26) if cpu else (8192, 2**28)
    # Several calls in a row hide the time of starting one. A CPU needs only one call, because it
    # takes tens of milliseconds.
    calls = 1 if cpu else 10
    exact = jax.lax.Precision.HIGHEST if dtype == "float32" else None  # no TF32
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(dtype))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=exact))
    # Adding 1 moves the same bytes as a copy, which XLA could leave out.
    copy = jax.jit(lambda a: a + 1)
    y = jnp.zeros((size,), jnp.int32)
    return Peaks(
        flops_per_s=2 * n**3 / _seconds(product, x, calls),
        bytes_per_s=2 * y.nbytes / _seconds(copy, y, calls),
        source=f"measured in this run: {dtype} matrix product of {n}^3, copy of {y.nbytes >> 20} "
        "MiB (bytes read + written)",
    )


def _seconds(f: Callable[[jax.Array], jax.Array], x: jax.Array, calls: int) -> float:
    """Returns the seconds per call of `calls` calls in a row, the median over 5 series."""
    jax.block_until_ready(f(x))
    series = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            out = f(x)
        jax.block_until_ready(out)
        series.append((time.perf_counter() - start) / calls)
    return statistics.median(series)
