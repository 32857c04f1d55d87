"""Compares the implementations of attention, packed with separate rows, and remat modes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sdjax.errors import UserError
from sdjax.models.network import attention, splash, transformer

SEGMENTS = np.array([[1] * 40 + [2] * 70 + [0] * 30, [1] * 140], np.int32)
ONE_SEGMENT = np.array([[1] * 100 + [0] * 40, [1] * 140], np.int32)
has_gpu = jax.default_backend() == "gpu"
HOPPER = getattr(jax.devices()[0], "compute_capability", "none").startswith("9.")
HEAD_DIMS = [64, pytest.param(256, marks=pytest.mark.skipif(not HOPPER, reason="needs a Hopper"))]


def qkv(dtype, heads=4, kv_heads=2, head_dim=16, tokens=140):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, tokens, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def weighed(out: jax.Array, segments: np.ndarray) -> jax.Array:
    """Returns a sum in which every output of a real token has another weight."""
    real = jnp.where((segments > 0)[..., None, None], out.astype(jnp.float32), 0)
    return jnp.sum(real * jnp.cos(jnp.arange(out.size).reshape(out.shape)))


def by_hand(q, k, v, segments, window):
    """Returns attention, computed by a loop over queries."""
    out = np.zeros(q.shape)
    for b, row in enumerate(segments):
        for i in range(len(row)):
            first = 0 if window is None else max(0, i - window + 1)
            seen = [j for j in range(first, i + 1) if row[j] == row[i]]
            for head in range(q.shape[2]):
                kv = head // (q.shape[2] // k.shape[2])
                scores = k[b, seen, kv] @ q[b, i, head] / np.sqrt(q.shape[3])
                weights = np.exp(scores - scores.max())
                out[b, i, head] = weights @ v[b, seen, kv] / weights.sum()
    return out


@pytest.mark.parametrize("window", [None, 9])
def test_plain_attention_sees_its_segment_up_to_itself_and_its_window(window):
    q, k, v = (np.asarray(x) for x in qkv("float32"))
    out = attention.attention(q, k, v, segment_ids=SEGMENTS, window=window, implementation="plain")
    np.testing.assert_allclose(out, by_hand(q, k, v, SEGMENTS, window), atol=2e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("window", [None, 9])
def test_splash_equals_plain_with_its_gradients(window):
    def loss(implementation):
        def value(q, k, v):
            if implementation == "splash":
                out = splash.attention(q, k, v, SEGMENTS, window, interpret=True)
            else:
                out = attention.attention(
                    q, k, v, segment_ids=SEGMENTS, window=window, implementation="plain"
                )
            return weighed(out, SEGMENTS), out

        return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(
            *qkv("float32", heads=2, kv_heads=1, head_dim=8)
        )

    ours, plain = loss("splash"), loss("plain")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(not has_gpu, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("segments", [SEGMENTS, ONE_SEGMENT, None])
def test_cudnn_equals_plain_with_its_gradients(segments, window, head_dim):
    real = np.ones((2, 140), np.int32) if segments is None else segments

    def loss(implementation, dtype):
        def value(q, k, v):
            out = attention.attention(
                q, k, v, segment_ids=segments, window=window, implementation=implementation
            )
            return weighed(out, real), jnp.where((real > 0)[..., None, None], out, 0)

        q, k, v = (x.astype(dtype) for x in qkv("bfloat16", head_dim=head_dim))
        return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ours, exact = loss("cudnn", "bfloat16"), loss("plain", "float32")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        # bfloat16 keeps 8 bits, and gradients sum about a hundred such products.
        np.testing.assert_allclose(np.float32(a), b, atol=0.06, rtol=0.03)


@pytest.mark.parametrize("window", [None, 9, 200])
@pytest.mark.parametrize(
    "implementation",
    [
        "plain",
        pytest.param("cudnn", marks=pytest.mark.skipif(not has_gpu, reason="needs an NVIDIA GPU")),
    ],
)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_cached_attention_equals_the_last_row_of_attention(implementation, window, head_dim):
    dtype = "float32" if implementation == "plain" else "bfloat16"
    q, k, v = qkv(dtype, head_dim=head_dim)
    lengths = jnp.array([1, 77], jnp.int32)
    last = jnp.take_along_axis(q, (lengths - 1)[:, None, None, None], axis=1)
    axis = attention.SLOT_AXIS[implementation]
    out = attention.cached_attention(
        last,
        k.swapaxes(1, axis),
        v.swapaxes(1, axis),
        lengths,
        window=window,
        implementation=implementation,
    )
    segments = (jnp.arange(140) < lengths[:, None]).astype(jnp.int32)
    rows = attention.attention(
        *(x.astype("float32") for x in (q, k, v)),
        segment_ids=segments,
        window=window,
        implementation="plain",
    )
    wanted = jnp.take_along_axis(rows, (lengths - 1)[:, None, None, None], axis=1)
    np.testing.assert_allclose(
        np.float32(out), wanted, atol=1e-6 if implementation == "plain" else 0.02
    )


def test_cudnn_is_refused_for_what_it_cannot_do():
    for dtype, head_dim in (("float32", 64), ("bfloat16", 12), ("bfloat16", 264)):
        with pytest.raises(UserError, match=r"model\.attention is 'cudnn'"):
            attention.choose("cudnn", jnp.dtype(dtype), head_dim)
    assert attention.choose("cudnn", jnp.dtype("bfloat16"), 64) == "cudnn"


@pytest.mark.parametrize(
    ("capability", "widest"), [("8.0", 128), ("9.0", 256), ("10.0", 128), (None, 256)]
)
def test_cudnn_takes_wide_heads_on_hopper_alone(monkeypatch, capability, widest):
    device = SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    for head_dim in (128, 256):
        if head_dim <= widest:
            assert attention.choose("cudnn", jnp.dtype("bfloat16"), head_dim) == "cudnn"
            continue
        with pytest.raises(UserError, match=r"head_dim 256 .* multiple of 8 up to 128; say auto"):
            attention.choose("cudnn", jnp.dtype("bfloat16"), head_dim)


@pytest.fixture(
    scope="module", params=["olmo3", pytest.param("gemma3_text", marks=pytest.mark.heavy)]
)
def both_kinds(request, tmp_path_factory):
    """A model with both kinds of layers, windows shorter than the rows, and biases."""
    changes = {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 5,
        "attention_bias": True,
        "rope_parameters": {"full_attention": {"rope_theta": 1e3, "rope_type": "default"}},
    }
    return tiny.model_folder(tmp_path_factory.mktemp("model"), request.param, **changes)


def forward(graphdef, params, tokens, positions, segments):
    model = nnx.merge(graphdef, params)
    hidden = transformer.hidden_states(model, tokens, positions, segments)
    return transformer.logits(hidden, transformer.head_weight(model).astype(hidden.dtype))


run = jax.jit(forward, static_argnums=0)


def test_packed_segments_give_what_separate_rows_give(both_kinds):
    _, graphdef, params = tiny.load(both_kinds)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, tiny.VOCABULARY, n).astype(np.int32) for n in (11, 8))
    fill = np.full(2, 7, np.int32)
    packed = np.concatenate([a, fill, b, fill])[None]
    segments = np.array([1] * 11 + [0] * 2 + [2] * 8 + [0] * 2, np.int32)[None]
    positions = np.array([*range(11), 0, 0, *range(8), 0, 0], np.int32)[None]
    together = run(graphdef, params, packed, positions, segments)[0]

    rows = np.zeros((2, 23), np.int32)
    rows[0, :11], rows[1, :8] = a, b
    apart = run(
        graphdef,
        params,
        rows,
        np.broadcast_to(np.arange(23, dtype=np.int32), (2, 23)),
        (np.arange(23) < np.array([[11], [8]])).astype(np.int32),
    )
    np.testing.assert_allclose(together[:11], apart[0, :11], atol=2e-5)
    np.testing.assert_allclose(together[13:21], apart[1, :8], atol=2e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_every_remat_has_the_same_gradients_and_padding_has_none(both_kinds, remat):
    tokens = np.random.default_rng(1).integers(0, tiny.VOCABULARY, (3, 12)).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (3, 12))
    segments = np.array([[1] * 12, [1] * 5 + [0] * 7, [0] * 12], np.int32)

    def grads(remat):
        _, graphdef, params = tiny.load(both_kinds, remat=remat)

        def loss(params, tokens):
            out = jax.nn.log_softmax(forward(graphdef, params, tokens, positions, segments))
            return -jnp.sum(jnp.where(segments > 0, out[..., 5], 0))

        compiled = jax.jit(jax.grad(loss))
        return lambda tokens: jax.tree.leaves(compiled(params, tokens))

    full = grads("full")
    wanted = full(tokens)
    other_padding = full(np.where(segments > 0, tokens, 3))
    for others in (grads(remat)(tokens), other_padding):
        for a, b in zip(wanted, others, strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


@pytest.mark.heavy
def test_bfloat16_decoding_agrees_with_the_bfloat16_forward_pass(both_kinds):
    cfg, graphdef, params = tiny.load(both_kinds, compute_dtype="bfloat16")
    tokens = np.random.default_rng(2).integers(0, tiny.VOCABULARY, (1, 12)).astype(np.int32)
    positions = np.arange(12, dtype=np.int32)[None]
    wanted = run(graphdef, params, tokens, positions, np.ones_like(tokens))
    assert wanted.dtype == jnp.float32

    prefill = jax.jit(transformer.prefill, static_argnums=1)
    decode_step = jax.jit(transformer.decode_step, static_argnums=1)
    weights = jax.jit(lambda p: transformer.decode_weights(nnx.merge(graphdef, p)))(params)
    # The cache of 12 tokens has room for every step.
    hidden, cache = prefill(weights, cfg, tokens, jnp.array([8]))
    out = [hidden]
    for i in range(8, 12):
        hidden, cache = decode_step(weights, cfg, tokens[:, i], cache)
        out.append(hidden)
    got = transformer.logits(jnp.stack(out, 1), weights.head)
    assert {x.dtype for x in jax.tree.leaves((weights, cache.keys))} == {jnp.dtype("bfloat16")}
    assert int(cache.length[0]) == 12
    # A bfloat16 has 3 digits, and logits here reach 7.
    np.testing.assert_allclose(got, wanted[:, 7:], atol=0.15)


def test_a_full_cache_is_not_written(both_kinds):
    cfg, graphdef, params = tiny.load(both_kinds)
    tokens = jnp.array([[5, 6, 7], [8, 9, 0]], jnp.int32)

    def decode(params):
        weights = transformer.decode_weights(nnx.merge(graphdef, params))
        _, cache = transformer.prefill(weights, cfg, tokens, jnp.array([3, 2]))
        return cache, transformer.decode_step(weights, cfg, jnp.array([1, 2]), cache)[1]

    cache, after = jax.jit(decode)(params)
    for before, now in zip(cache.keys, after.keys, strict=True):
        np.testing.assert_array_equal(before[0], now[0])
        before, now = (np.moveaxis(x, transformer.slot_axis(cfg), 1)[1] for x in (before, now))
        np.testing.assert_array_equal(before[:2], now[:2])
        assert np.abs(before[2] - now[2]).max() > 0
    assert after.length.tolist() == [4, 3]


def test_float32_products_are_not_rounded_on_any_device(both_kinds):
    _, graphdef, params = tiny.load(both_kinds)
    tokens = np.zeros((1, 12), np.int32)
    text = run.lower(graphdef, params, tokens, tokens, tokens).as_text()
    products = re.findall(r"stablehlo\.dot_general.*", text)
    assert len(products) >= 10
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
