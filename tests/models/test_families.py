"""A family may bring its own MLP, arrays per expert, and layers without rotary embedding."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file

from sdjax.models.families import llama, registry
from sdjax.models.families.family import Family
from sdjax.models.files import weights
from sdjax.models.network import attention, layer, transformer
from sdjax.models.network.model_config import LayerKind

EXPERTS = 3
NAMES = llama.NAMES | {
    "gate": "mlp.experts.{expert}.gate_proj.weight",
    "up": "mlp.experts.{expert}.up_proj.weight",
    "down": "mlp.experts.{expert}.down_proj.weight",
    "router": "mlp.router.weight",
}


def from_hf(fields, **runtime):
    return replace(llama.from_hf(fields, **runtime), family="experts")


def layer_shapes(cfg):
    shapes = dict(layer.layer_shapes(cfg))
    for name in ("gate", "up", "down"):
        shape, axes = shapes[name]
        shapes[name] = (EXPERTS, *shape), ("experts", *axes)
    return shapes | {"router": ((cfg.embed, EXPERTS), ("embed", None))}


def mlp(x, w, cfg):
    """Returns the sum of all experts' outputs, weighted by the router's softmax."""
    share = jax.nn.softmax(attention.product("bsd,de->bse", x, w.others["router"], jnp.float32))
    gate = attention.product("bsd,edf->bsef", x, w.gate)
    inner = jax.nn.silu(gate) * attention.product("bsd,edf->bsef", x, w.up) * share[..., None]
    return attention.product("bsef,efd->bsd", inner, w.down, jnp.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder of a family whose MLP has three experts and a router."""
    family = Family(
        from_hf=from_hf,
        to_hf=llama.to_hf,
        names=NAMES,
        layer_shapes=layer_shapes,
        outputs=layer.OUTPUTS | {"router": 1},
        mlp=mlp,
    )
    monkeypatch.setitem(registry.FAMILIES, "experts", family)
    return tiny.model_folder(tmp_path / "model", "experts")


def stored(folder):
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(cfg, params, tokens):
    model = nnx.merge(tiny.graph(cfg), params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return transformer.hidden_states(model, tokens, positions, None)


def assert_decoding_agrees(cfg, params, tokens):
    """Asserts that prefill and decoding give the hidden states of the forward pass."""

    @jax.jit
    def decoding(params, tokens):
        own = transformer.decode_weights(nnx.merge(tiny.graph(cfg), params))
        hidden, cache = transformer.prefill(own, cfg, tokens[:, :12], jnp.full(len(tokens), 12))
        cache = tiny.with_room(cache, cfg, 1)
        return hidden, transformer.decode_step(own, cfg, tokens[:, 12], cache)[0]

    hidden, decoded = decoding(params, tokens)
    whole = hidden_of(cfg, params, tokens)
    np.testing.assert_allclose(hidden, whole[:, 11], atol=1e-4)
    np.testing.assert_allclose(decoded, whole[:, 12], atol=1e-4)


def test_tensors_of_experts_stack_over_layers_and_experts(folder, tmp_path):
    cfg, _, params = tiny.load(folder)
    tensors = stored(folder)
    gate = params["layers"]["gate"].get_value()
    assert gate.shape == (cfg.num_layers, EXPERTS, cfg.embed, cfg.mlp)
    for i in range(cfg.num_layers):
        router = params["layers"]["router"].get_value()[i]
        np.testing.assert_array_equal(router, tensors[f"model.layers.{i}.mlp.router.weight"].T)
        for e in range(EXPERTS):
            name = f"model.layers.{i}.mlp.experts.{e}.gate_proj.weight"
            np.testing.assert_array_equal(gate[i, e], tensors[name].T)
    weights.export(params, cfg, folder, tmp_path / "out", dtype="float32")
    written = stored(tmp_path / "out")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)


@pytest.mark.heavy
def test_the_mlp_of_a_family_runs_in_training_and_in_decoding(folder):
    cfg, _, params = tiny.load(folder)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 13)).astype(np.int32)
    assert_decoding_agrees(cfg, params, tokens)
    grads = jax.jit(jax.grad(lambda p: hidden_of(cfg, p, tokens)[..., 0].sum()))(params)
    for name in ("router", "gate", "up", "down"):
        of_layers = np.asarray(grads["layers"][name].get_value())
        assert (np.abs(of_layers).reshape(cfg.num_layers, -1).max(1) > 0).all(), name


@pytest.mark.parametrize(("family", "stored"), [("llama", 1.0), ("gemma3_text", 0.0)])
def test_every_norm_of_a_drawn_model_multiplies_by_one(family, stored):
    cfg = registry.from_hf(tiny.config(family), compute_dtype="float32")
    params = nnx.state(transformer.Transformer(cfg, rngs=nnx.Rngs(0)))
    norms = {path: v for path, v in nnx.to_flat_state(params) if path[-1].endswith("norm")}
    assert len(norms) == (3 if family == "llama" else 7)
    for variable in norms.values():
        scale = variable.get_value()
        np.testing.assert_array_equal(scale, np.full(scale.shape, stored))
        x = jnp.full(scale.shape, 5.0)
        np.testing.assert_allclose(layer.rms_norm(x, scale, cfg), jnp.ones(x.shape), rtol=1e-6)


@pytest.mark.heavy
def test_a_layer_without_rotary_embedding_sees_no_positions(tmp_path):
    cfg, _, params = tiny.load(tiny.model_folder(tmp_path, "llama"))
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 13)).astype(np.int32)
    mixed = replace(cfg, layers=(LayerKind(rope=None), cfg.layers[1]))
    assert_decoding_agrees(mixed, params, tokens)
    rotated = hidden_of(cfg, params, tokens)
    assert np.abs(hidden_of(mixed, params, tokens) - rotated).max() > 1e-2
    # The last token of a row sees the tokens before it as a set, if no layer rotates.
    none = replace(cfg, num_layers=1, layers=(LayerKind(rope=None),))
    one = jax.tree.map(lambda x: x, params)
    one["layers"] = jax.tree.map(lambda x: x[:1], params["layers"])
    turned = np.concatenate([tokens[:, 11::-1], tokens[:, 12:]], axis=1)
    a, b = (hidden_of(none, one, x)[:, -1] for x in (tokens, turned))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.heavy
def test_a_packed_sequence_counts_its_own_positions_where_queries_grow(tmp_path):
    growth = {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 3}
    rope = {"rope_type": "default", **growth}
    folder = tiny.model_folder(tmp_path, "ministral3", rope_parameters=rope)
    cfg, _, params = tiny.load(folder)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 13)).astype(np.int32)
    assert_decoding_agrees(cfg, params, tokens)
    alone = hidden_of(cfg, params, tokens)
    row = tokens.reshape(1, -1)
    positions = np.tile(np.arange(13, dtype=np.int32), 2)[None]
    segments = np.repeat(np.array([1, 2], np.int32), 13)[None]
    packed = jax.jit(transformer.hidden_states)(
        nnx.merge(tiny.graph(cfg), params), row, positions, segments
    )
    np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=1e-4)
