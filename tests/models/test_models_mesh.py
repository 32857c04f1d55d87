"""The model on eight fake devices gives the numbers of one, and no device holds a whole table."""

from __future__ import annotations

import other_process
import pytest
import tiny

SCRIPT = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import decode_step as kernels
import tiny
from flax import nnx

from sdjax import config
from sdjax.models.files import weights
from sdjax.models.network import decode_gpu, layer, transformer
from sdjax.parallel import mesh as meshes, rules

cfg, graph, whole = tiny.load(Path(sys.argv[1]))
mesh = meshes.make(config.Mesh(data=2, fsdp=2, tensor=2))
shardings = rules.param_shardings(weights.abstract_params(cfg), mesh)
rows = rules.leading(mesh)
tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (8, 12)).astype(np.int32)
positions = np.broadcast_to(np.arange(12, dtype=np.int32), (8, 12))

def embedded(params, tokens, positions):
    model = nnx.merge(graph, params)
    return transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))

def loss(params, tokens, positions):
    hidden = embedded(params, tokens, positions)
    model = nnx.merge(graph, params)
    logits = transformer.logits(hidden, transformer.head_weight(model))
    return -jax.nn.log_softmax(logits)[..., 3].mean()

def decode(params, tokens):
    model = transformer.decode_weights(nnx.merge(graph, params))
    lengths = jnp.full(8, 7, jnp.int32)
    _, cache = transformer.prefill(model, cfg, tokens, lengths)
    hidden, cache = transformer.decode_step(model, cfg, tokens[:, 7], cache)
    return transformer.decode_step(model, cfg, tokens[:, 8], cache)

def results(params, tokens, positions):
    grads = jax.jit(jax.value_and_grad(loss))(params, tokens, positions)
    return jax.tree.leaves((grads, jax.jit(decode)(params, tokens)))

one = [np.asarray(x) for x in results(whole, tokens, positions)]
with jax.set_mesh(mesh):
    placed = jax.device_put(whole, shardings)
    many = results(placed, *(jax.device_put(x, rows) for x in (tokens, positions)))
    assert not many[-2].sharding.is_fully_replicated
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)

    ids = jax.ShapeDtypeStruct((8, 12), jnp.int32, sharding=rows)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), whole, shardings
    )
    grads = jax.jit(jax.grad(lambda *args: embedded(*args).sum()), out_shardings=shardings)
    step = grads.lower(params, ids, ids).compile()
    print(step.memory_analysis().temp_size_in_bytes / whole.embedding.get_value().nbytes)

# The kernels of a GPU's decoding step, with one row per device.
case = cfg, layer_weights, x, turn, cache = kernels.step(Path(sys.argv[2]))
expected = *kernels.by_layer(*case), layer.gated(x, layer_weights)
with jax.set_mesh(meshes.for_rollouts(meshes.make(config.Mesh(data=8, fsdp=1)))):
    def step(x, turn, cache):
        made = kernels.by_kernel(cfg, layer_weights, x, turn, cache)
        return *made, decode_gpu.gated(x, layer_weights, interpret=True)
    made = jax.jit(step)(*jax.tree.map(np.asarray, (x, turn, cache)))
    assert all(a.addressable_shards[0].data.shape[0] == 1 for a in jax.tree.leaves(made))
    kernels.same(made[:3], expected[:3])
    np.testing.assert_allclose(made[3], expected[3], rtol=1e-4, atol=1e-5)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["olmo3", "gemma3_text"])
def test_a_mesh_changes_no_number_and_holds_no_table_whole(tmp_path, family):
    folder = tiny.model_folder(
        tmp_path,
        family,
        vocab_size=16_384,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=5,
        attention_bias=True,
    )
    printed = other_process.on_eight_devices(SCRIPT, str(folder), str(tmp_path / "qwen3"))
    # A quarter of the table's gradient, twice (before and after the sum over data), and a rest.
    assert float(printed) < 0.7
