"""One layer's decoding step, as the layer computes it and as the GPU's kernels do."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from sdjax.models.network import attention, decode_gpu, layer, transformer

ROWS, SLOTS = 8, 150


def index(slots):
    """Returns the slot that each row writes to: three caches are full. Tiles have 64 slots."""
    return jnp.array([0, 3, slots - 1, slots, 64, 63, slots + 99, slots + 1], jnp.int32)


def step(folder, slots=SLOTS, **changes):
    """Returns a model's config, weights of a layer, and what its attention takes at one step."""
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    sizes |= {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    cfg, graph, params = tiny.load(tiny.model_folder(folder, **sizes | changes))
    weights = transformer.decode_weights(nnx.merge(graph, params)).layers[1]
    of_x, *of_cache = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(of_x, (ROWS, 1, cfg.embed))
    shape = (ROWS, slots, cfg.num_kv_heads, cfg.head_dim)
    cache = tuple(jax.random.normal(key, shape) for key in of_cache)
    turn = attention.rotary_tables(cfg.layers[1].rope, cfg.head_dim, index(slots)[:, None])
    return cfg, weights, x, turn, cache


def by_layer(cfg, weights, x, turn, cache, window=None):
    """Returns the attention's output and the caches, computed as on other devices."""
    q, k, v = layer.attention_inputs(x, weights, turn, cfg)
    rows, at = jnp.arange(ROWS), index(cache[0].shape[1])
    keys = cache[0].at[rows, at].set(k[:, 0], mode="drop")
    values = cache[1].at[rows, at].set(v[:, 0], mode="drop")
    turned = (y.swapaxes(1, 2) for y in (keys, values))
    out = attention.cached_attention(q, *turned, at + 1, window=window, implementation="plain")
    return out, keys, values


def by_kernel(cfg, weights, x, turn, cache, window=None):
    slots = (*cache, index(cache[0].shape[1]))
    with jax.default_matmul_precision("highest"):  # on a GPU too
        return decode_gpu.attend(x, weights, turn, cfg, slots, window, interpret=True)


def same(kernel, expected):
    (out, *kept), (expected_out, *expected_kept) = kernel, expected
    slots = kept[0].shape[1]
    room = np.asarray(index(slots) < slots)  # a row whose cache is full is not sampled from
    out, expected_out = np.asarray(out), np.asarray(expected_out)
    np.testing.assert_allclose(out[room], expected_out[room], rtol=1e-4, atol=1e-5)
    assert np.isfinite(out).all()
    for a, b in zip(kept, expected_kept, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
