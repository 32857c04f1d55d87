"""The kernels of a GPU's decoding step: interpreted on a CPU, and compiled for a GPU."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import marks
import numpy as np
import pytest
import tiny
from decode_step import by_kernel, by_layer, same, step
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh

from sdjax.models.families import registry
from sdjax.models.network import decode_gpu, decode_kernels, layer, transformer
from sdjax.parallel.mesh import AS_WRITTEN


@pytest.mark.heavy
@pytest.mark.parametrize(
    "family, window",
    [("qwen3", None), ("llama", 70), ("qwen3", 5)],
)
def test_the_kernel_attends_and_writes_as_the_layer_does(tmp_path, family, window):
    case = step(tmp_path, family=family)
    assert (case[1].q_norm is None) == (family == "llama")
    same(by_kernel(*case, window), by_layer(*case, window))


@pytest.mark.heavy
def test_the_kernel_multiplies_queries_as_the_layer_does(tmp_path):
    case = step(tmp_path, family="granite", attention_multiplier=0.9)
    assert case[0].query_factor > 5
    same(by_kernel(*case), by_layer(*case))


@pytest.mark.heavy
def test_blocks_that_share_a_row_give_what_one_gives(tmp_path, monkeypatch):
    case = step(tmp_path, slots=600)
    expected = by_layer(*case)
    for blocks in (1, 40, 10_000):  # one, four and eight per row and KV head
        monkeypatch.setattr(decode_kernels, "BLOCKS", blocks)
        same(by_kernel(*case), expected)


@pytest.mark.heavy
@pytest.mark.parametrize("rows", marks.heavy_but([24], [1, 16, 24, 100]))
def test_gate_and_up_in_one_kernel_are_the_layers(tmp_path, rows):
    sizes = {"hidden_size": 192, "intermediate_size": 128}
    _, weights, *_ = step(tmp_path, **sizes)
    x = jax.random.normal(jax.random.key(0), (rows, 1, 192))
    assert decode_kernels.fits_gate_up(rows, *weights.gate.shape)
    with jax.default_matmul_precision("highest"):
        made = decode_gpu.gated(x, weights, interpret=True)
    np.testing.assert_allclose(made, layer.gated(x, weights), rtol=1e-4, atol=1e-6)


@pytest.mark.heavy
def test_gate_and_up_are_rounded_as_those_of_rows_that_are_trained_on(tmp_path):
    _, weights, *_ = step(tmp_path, hidden_size=192, intermediate_size=128)
    weights = layer.cast(weights, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (16, 1, 192), jnp.bfloat16)
    kernel = partial(decode_gpu.gated, interpret=jax.default_backend() != "gpu")
    made, expected = (
        jax.jit(f, compiler_options=AS_WRITTEN)(x, weights) for f in (kernel, layer.gated)
    )
    assert made.dtype == jnp.bfloat16
    # Sums in another order may round differently.
    assert (made == expected).mean() > 0.95


@pytest.mark.heavy
def test_sizes_that_no_kernel_is_for_are_left_to_the_layer(tmp_path):
    assert not decode_kernels.fits_gate_up(257, 128, 128)
    assert not decode_kernels.fits_gate_up(8, 128, 96)
    _, weights, x, *_ = step(tmp_path, intermediate_size=96)
    np.testing.assert_array_equal(decode_gpu.gated(x, weights), layer.gated(x, weights))
    for head_dim, fits in ((64, True), (96, False), (80, False), (128, True)):
        folder = tiny.model_folder(tmp_path / str(head_dim), head_dim=head_dim)
        assert decode_gpu.fits(tiny.load(folder)[0]) == fits


def test_the_kernel_says_which_families_it_does_not_fit():
    def fits(family, **changes):
        return decode_gpu.fits(registry.from_hf(tiny.config(family, head_dim=64, **changes)))

    assert fits("granite", attention_multiplier=0.1) and fits("mistral")
    assert not fits("ministral3")  # its queries grow
    assert fits("ministral3", rope_parameters={"rope_type": "default"})
    assert fits("phi3") and not fits("phi3", partial_rotary_factor=0.75)


def test_a_layer_of_gemma_3_is_left_to_the_layer():
    for family, fits in (("qwen3", True), ("gemma3_text", False)):
        assert decode_gpu.fits(registry.from_hf(tiny.config(family, head_dim=64))) == fits


@pytest.mark.heavy
def test_a_gate_of_another_function_than_silu_is_left_to_the_layer(tmp_path):
    sizes = {"hidden_size": 192, "intermediate_size": 128}
    _, weights, *_ = step(tmp_path, family="gemma3_text", **sizes)
    x = jax.random.normal(jax.random.key(0), (16, 1, 192))
    assert decode_kernels.fits_gate_up(16, *weights.gate.shape)
    made = decode_gpu.gated(x, weights, "gelu_tanh")
    np.testing.assert_array_equal(made, layer.gated(x, weights, "gelu_tanh"))
    assert np.abs(made - layer.gated(x, weights)).max() > 1e-2


@pytest.mark.parametrize("rows, window", [(64, None), (8, 70)])
def test_the_kernels_of_a_real_shape_lower_to_triton(rows, window):
    def abstract(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    def both(parts, norm, turn, cache, index, x, w):
        attend = partial(decode_kernels.attend, eps=1e-6, window=window)
        out = attend(parts, (norm, norm), (turn, turn), (cache, cache), index)
        return out, decode_kernels.gate_up(x, w, w)

    args = (
        abstract(4, rows, 16 + 2 * 8, 128, dtype=jnp.float32),
        abstract(128),
        abstract(rows, 64, dtype=jnp.float32),
        abstract(rows, 640, 8, 128),
        abstract(rows, dtype=jnp.int32),
        abstract(rows, 2048),
        abstract(2048, 6144),
    )
    device = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        lowered = jax.jit(both).trace(*args).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 2


@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    marks.heavy_but(
        [(4, 2048, 48), (3, 100, 8)],
        [(4, 2048, 48), (64, 2048, 4096), (65, 2048, 16), (2, 6144, 2048), (3, 100, 8)],
    ),
)
def test_parts_of_a_product_add_up_to_it(rows, inner, columns):
    x = jax.random.normal(jax.random.key(0), (rows, inner))
    w = jax.random.normal(jax.random.key(1), (inner, columns)) / inner**0.5
    parts = layer.in_parts(x, w)
    assert parts.shape[1:] == (rows, columns)
    assert (len(parts) > 1) == (inner > 256 and rows <= 64), "long sums of few rows are cut"
    whole = jnp.matmul(x, w, precision="highest")
    np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="runs the kernels on a GPU")
@pytest.mark.parametrize("family, window", [("qwen3", None), ("qwen3", 70), ("llama", None)])
def test_decoding_on_a_gpu_is_as_near_to_float32_with_the_kernels(
    tmp_path, monkeypatch, family, window
):
    sizes = {"hidden_size": 512, "intermediate_size": 192, "head_dim": 128, "num_hidden_layers": 3}
    if window is not None:
        sizes |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    cfg, _, params = tiny.load(tiny.model_folder(tmp_path, family=family, **sizes))
    assert (window in cfg.windows) and decode_gpu.fits(cfg)
    tokens = jax.random.randint(jax.random.key(0), (4, 200), 0, cfg.vocab_size)
    length = jnp.array([1, 60, 140, 200], jnp.int32)

    def decoded(**runtime):
        own = replace(cfg, **runtime)
        weights = jax.jit(lambda p: transformer.decode_weights(nnx.merge(tiny.graph(own), p)))
        weights = weights(params)
        _, cache = transformer.prefill(weights, own, tokens, length)
        cache, out = tiny.with_room(cache, own, 100), []  # few rows: four blocks share each
        step = jax.jit(partial(transformer.decode_step, cfg=own))
        for i in range(6):
            hidden, cache = step(weights, token=tokens[:, i], cache=cache)
            out.append(hidden.astype(jnp.float32))
        return jnp.stack(out)

    exact = decoded(compute_dtype="float32", attention="plain")
    fits = decode_gpu.fits
    monkeypatch.setattr(decode_gpu, "fits", lambda *_: False)
    without = decoded(compute_dtype="bfloat16", attention="cudnn")
    monkeypatch.setattr(decode_gpu, "fits", fits)
    made = decoded(compute_dtype="bfloat16", attention="cudnn")
    assert (made != without).any(), "the kernels ran"
    apart = [jnp.sqrt(jnp.mean(jnp.square(x - exact), -1)) for x in (made, without)]
    print(family, window, "apart from float32 by", *(x.mean() for x in apart))
    assert apart[0].mean() < 1.2 * apart[1].mean() and apart[0].max() < 2 * apart[1].max()
