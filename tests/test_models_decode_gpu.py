"""The GPU's kernel of a decoding step, run as JAX runs it without one, and compiled for one."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.models import decode_gpu, layer, rope, transformer

ROWS, SLOTS = 8, 6
INDEX = jnp.array([0, 3, SLOTS - 1, SLOTS, 1, 2, SLOTS + 1, 0], jnp.int32)  # two caches are full


def step(folder, **changes):
    """Returns a model's config, weights of a layer and rope's tables, and the kernel's inputs."""
    cfg, graph, params = tiny.load(tiny.model_folder(folder, **changes))
    weights = transformer.decode_weights(nnx.merge(graph, params)).layers[1]
    of_x, *of_cache = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(of_x, (ROWS, cfg.embed))
    shape = (ROWS, SLOTS, cfg.num_kv_heads, cfg.head_dim)
    cache = [jax.random.normal(key, shape) for key in of_cache]
    turn = rope.tables(cfg.rope(1), cfg.head_dim, INDEX[:, None])
    qkv = jnp.concatenate([m.reshape(cfg.embed, -1) for m in (weights.q, weights.k, weights.v)], 1)
    exact = partial(jnp.matmul, precision="highest")  # float32 on a GPU too
    parts = jnp.stack([exact(x[:, :8], qkv[:8]), exact(x[:, 8:], qkv[8:])])
    inputs = (parts, (weights.q_norm, weights.k_norm), tuple(t[:, 0] for t in turn), *cache, INDEX)
    return cfg, weights, x, turn, inputs


def by_layer(cfg, weights, x, turn, inputs):
    """Returns queries and caches as the layer of training and of other devices makes them."""
    *_, keys, values, index = inputs

    def attend(q, k, v):
        return q, (q, k, v)

    _, (q, k, v) = layer.attended(x[:, None], weights, turn, cfg, attend)
    keys, values = np.array(keys), np.array(values)
    for row, slot in enumerate(index):
        if slot < SLOTS:
            keys[row, slot], values[row, slot] = k[row, 0], v[row, 0]
    return q[:, 0], keys, values


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_kernel_turns_and_writes_as_the_layer_does_with_and_without_norms(tmp_path, family):
    case = step(tmp_path, family=family)
    assert (case[1].q_norm is None) == (family == "llama")
    made = decode_gpu.turn_and_write(*case[-1], cfg=case[0], interpret=True)
    for a, b in zip(made, by_layer(*case), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_kernel_compiles_to_triton(tmp_path):
    cfg, *_, inputs = step(tmp_path)
    lowered = jax.jit(partial(decode_gpu.turn_and_write, cfg=cfg)).trace(*inputs)
    assert "xla.gpu.triton" in lowered.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    "shape", [(4, 2048, 48), (64, 2048, 4096), (65, 2048, 16), (2, 6144, 2048), (3, 100, 8)]
)
def test_parts_of_a_product_add_up_to_it(shape):
    rows, inner, columns = shape
    x = jax.random.normal(jax.random.key(0), (rows, inner))
    w = jax.random.normal(jax.random.key(1), (inner, columns)) / inner**0.5
    parts = layer.in_parts(x, w)
    assert parts.shape[1:] == (rows, columns)
    assert (len(parts) > 1) == (inner > 256 and rows <= 64), "long sums of few rows are cut"
    whole = jnp.matmul(x, w, precision="highest")
    np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="runs the kernel on a GPU")
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_decoding_on_a_gpu_is_as_near_to_float32_with_the_kernel(tmp_path, monkeypatch, family):
    sizes = {"hidden_size": 512, "head_dim": 64, "num_hidden_layers": 3}
    cfg, _, params = tiny.load(tiny.model_folder(tmp_path, family=family, **sizes))
    tokens = jax.random.randint(jax.random.key(0), (4, 9), 0, cfg.vocab_size)
    length = jnp.array([1, 4, 8, 9], jnp.int32)

    def decoded(**runtime):
        own = replace(cfg, **runtime)
        weights = jax.jit(lambda p: transformer.decode_weights(nnx.merge(tiny.graph(own), p)))
        weights = weights(params)
        _, cache = transformer.prefill(weights, own, tokens, length)
        cache, out = tiny.with_room(cache, own, 8), []
        step = jax.jit(partial(transformer.decode_step, cfg=own))
        for i in range(6):
            hidden, cache = step(weights, token=tokens[:, i], cache=cache)
            out.append(hidden.astype(jnp.float32))
        return jnp.stack(out)

    exact = decoded(compute_dtype="float32", attention="plain")
    monkeypatch.setattr(decode_gpu, "fits", lambda *_: False)
    without = abs(decoded(compute_dtype="bfloat16", attention="cudnn") - exact).max()
    monkeypatch.undo()
    with_kernel = abs(decoded(compute_dtype="bfloat16", attention="cudnn") - exact).max()
    print(family, "apart from float32 by", with_kernel, "and without the kernel by", without)
    assert with_kernel < 1.5 * without
