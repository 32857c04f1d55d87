"""Makes several processes agree on values, and places host arrays on the devices of all of them.

Every process runs the same program on the same examples, so that all get the same arrays. Each
copies its own part to its devices. All processes must call every function of this module.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdjax.errors import UserError


def gathered(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value, default=_plain).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(data)))
    # Powers of two, so that few programs are compiled.
    room = 1 << max(int(sizes.max()) - 1, 255).bit_length()
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def of_first(value: Any) -> Any:
    """Returns process 0's JSON value."""
    return gathered(value if jax.process_index() == 0 else None)[0]


def wait_for_first() -> None:
    """Waits until process 0 calls this function too."""
    gathered(None)


def check_same(what: str, value: Any, remedy: str) -> None:
    """Raises UserError if processes have different values: trees of arrays, numbers and texts."""
    if jax.process_count() == 1:
        return
    digest = 0
    for leaf in jax.tree.leaves(value):
        data = leaf.encode() if isinstance(leaf, str) else np.asarray(leaf).tobytes()
        digest = zlib.crc32(data, digest)
    digests = gathered(digest)
    other = next((i for i, d in enumerate(digests) if d != digests[0]), None)
    if other is not None:
        raise UserError(f"{what}: process {other} has others than process 0: {remedy}")


def place(tree: Any, shardings: Any) -> Any:
    """Returns host arrays on the devices. Each process has the whole arrays and copies its part."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        array = np.asarray(x)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: one(x, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def _plain(value: Any) -> Any:
    """Returns a numpy array or number as a list or number that JSON can hold."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be sent to other processes: {value!r}")


def note(text: str) -> None:
    """Prints a line, on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)
