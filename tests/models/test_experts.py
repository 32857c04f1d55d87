"""The ways of computing experts agree, drop no token, and are chosen by the device."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import other_process
import pytest
import tiny
from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.models.families import registry
from sdjax.models.files import weights
from sdjax.models.network import experts, lora, transformer
from sdjax.models.network.model_config import Experts
from sdjax.parallel import mesh as meshes
from sdjax.training import loaded_model

TOKENS, EMBED, WIDTH, COUNT, PER_TOKEN = 37, 16, 24, 6, 3


def inputs(seed=0):
    """Returns x, shares, indices and matrices. Some experts have no token, one has most."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((TOKENS, EMBED)).astype(np.float32)
    share = rng.random((TOKENS, PER_TOKEN)).astype(np.float32)
    likely = np.array([0.3, 0.3, 0.2, 0.2, 0.0, 0.0])
    index = np.stack([rng.choice(COUNT, PER_TOKEN, replace=False, p=likely) for _ in x])
    shapes = ((COUNT, EMBED, WIDTH),) * 2 + ((COUNT, WIDTH, EMBED),)
    matrices = tuple((0.3 * rng.standard_normal(s)).astype(np.float32) for s in shapes)
    return x, share, index.astype(np.int32), matrices


def by_hand(x, share, index, matrices):
    """Returns the outputs, computed by a loop over tokens and their experts."""
    gate, up, down = matrices
    out = np.zeros((len(x), EMBED))
    for token, experts_of in enumerate(index):
        for weight, e in zip(share[token], experts_of, strict=True):
            if 0 <= e < len(gate):
                inner = x[token] @ gate[e]
                inner = inner / (1 + np.exp(-inner)) * (x[token] @ up[e])
                out[token] += weight * (inner @ down[e])
    return out


def with_gradients(x, share, index, matrices, way):
    """Returns the outputs, and the gradients of x, shares and matrices of their weighted sum."""

    def loss(x, share, matrices):
        out = experts.computed(x, share, index, matrices, way)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

    f = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return jax.tree.leaves(f(x, share, matrices)[::-1])


def assert_same(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, np.abs(b).max()), rtol=0)


@pytest.fixture
def tokamax(monkeypatch):
    """The interface of tokamax.ragged_dot, with nothing of use in rows after the last group."""

    def ragged_dot(x, w, sizes, **how):
        out = jax.lax.ragged_dot(x, w, sizes, **how)
        return jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], out, jnp.nan)

    monkeypatch.setitem(sys.modules, "tokamax", SimpleNamespace(ragged_dot=ragged_dot))


def test_every_way_has_the_numbers_of_a_loop_over_tokens(tokamax):
    case = inputs()
    for way in ("dense", "grouped", "tokamax"):
        out = experts.computed(*case, way)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, by_hand(*case), atol=2e-5)


def test_every_way_has_the_same_gradients(tokamax):
    case = inputs(1)
    dense = with_gradients(*case, "dense")
    for way in ("grouped", "tokamax"):
        assert_same(with_gradients(*case, way), dense)


def test_experts_of_other_devices_add_nothing(tokamax):
    x, share, index, matrices = inputs(2)
    held = tuple(m[2:4] for m in matrices)
    dense = with_gradients(x, share, index - 2, held, "dense")
    np.testing.assert_allclose(dense[0], by_hand(x, share, index - 2, held), atol=2e-5)
    for way in ("grouped", "tokamax"):
        assert_same(with_gradients(x, share, index - 2, held, way), dense)


def test_no_token_is_dropped_if_all_want_one_expert():
    x, share, index, matrices = inputs(3)
    same = np.broadcast_to(np.array([4, 1, 5], np.int32), index.shape)
    expected = by_hand(x, share, same, matrices)
    assert (np.abs(expected).max(1) > 0.01).all()
    for way in ("dense", "grouped"):
        np.testing.assert_allclose(
            experts.computed(x, share, same, matrices, way), expected, atol=2e-5
        )


@pytest.mark.heavy
def test_bfloat16_experts_are_rounded_alike_in_every_way():
    x, share, index, matrices = inputs(4)
    x, matrices = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (jnp.asarray(x), matrices))
    dense = with_gradients(x, share, index, matrices, "dense")
    grouped = with_gradients(x, share, index, matrices, "grouped")
    # The outputs are summed in float32. One gradient is a sum of rounded gradients in one way.
    for i, (a, b) in enumerate(zip(grouped, dense, strict=True)):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        assert jnp.linalg.norm(a - b) <= (1e-2 if i else 1e-5) * jnp.linalg.norm(b)


def test_shares_are_parts_of_a_softmax_of_all_experts_or_sum_to_one():
    rng = np.random.default_rng(0)
    x, router = rng.standard_normal((5, 8)), rng.standard_normal((8, 4))
    scores = np.exp(x @ router) / np.exp(x @ router).sum(1, keepdims=True)
    best = np.argsort(-scores, axis=1)[:, :2]
    for normalised in (False, True):
        how = Experts(count=4, per_token=2, width=3, normalised=normalised)
        share, index = experts.routes(*map(jnp.float32, (x, router)), how)
        np.testing.assert_array_equal(index, best)
        expected = np.take_along_axis(scores, best, 1)
        expected = expected / expected.sum(1, keepdims=True) if normalised else expected
        np.testing.assert_allclose(share, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "capability", "installed", "way"),
    [
        ("cpu", "", True, "dense"),
        ("gpu", "9.0", True, "tokamax"),
        ("gpu", "9.0", False, "grouped"),
        ("gpu", "8.0", True, "grouped"),
        ("tpu", "", True, "tokamax"),
        ("tpu", "", False, "grouped"),
    ],
)
def test_the_device_and_what_is_installed_choose_the_way(platform, capability, installed, way):
    assert experts.choose(platform, capability, tokamax=installed) == way


@pytest.mark.heavy
def test_padding_changes_no_other_token(tmp_path):
    folder = tiny.model_folder(tmp_path, "qwen3_moe", num_hidden_layers=1)
    cfg, graph, params = tiny.load(folder, remat="none")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, cfg.vocab_size, (2, 10)).astype(np.int32)
    segments = np.array([[1] * 7 + [0] * 3, [1] * 4 + [2] * 4 + [0] * 2], np.int32)
    positions = np.broadcast_to(np.arange(10, dtype=np.int32), tokens.shape)
    other = np.where(segments == 0, tokens[0, 0], tokens).astype(np.int32)
    with jax.disable_jit():
        model = nnx.merge(graph, params)
        a, b = (
            transformer.hidden_states(model, ids, positions, segments) for ids in (tokens, other)
        )
    assert np.abs(a - b)[segments == 0].max() > 1e-2
    np.testing.assert_array_equal(a[segments > 0], b[segments > 0])


def test_adapters_of_experts_are_refused_before_weights_are_read():
    fields = tiny.config("qwen3_moe")
    with pytest.raises(UserError, match=r"lora\.matrices names gate, up, down: .* q, k, v, o"):
        registry.from_hf(fields, lora=config.Lora(rank=2))
    cfg = registry.from_hf(fields, lora=config.Lora(rank=2, matrices=("q", "o")))
    trained, _ = lora.split(weights.abstract_params(cfg))
    assert set(trained[lora.NAME]) == {"q_a", "q_b", "o_a", "o_b"}


def test_a_mesh_that_does_not_divide_the_experts_is_one_line():
    def check(family, *shape):
        cfg = registry.from_hf(tiny.config(family))
        loaded_model.check_divisible(cfg, jax.sharding.AbstractMesh(shape, meshes.NAMES))

    check("qwen3_moe", 1, 4, 2, 2)
    with pytest.raises(UserError, match=r"mesh\.expert x mesh\.fsdp is 16: must divide .* 8"):
        check("qwen3_moe", 1, 4, 4, 1)
    with pytest.raises(UserError, match=r"mesh\.expert is 2: .* have no experts"):
        check("qwen3", 1, 2, 1, 1)


SCRIPT = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import other_process
import tiny
from flax import nnx

from sdjax import config
from sdjax.models.files import weights
from sdjax.models.network import experts, transformer
from sdjax.parallel import mesh as meshes, rules

cfg, graph, whole = tiny.load(Path(sys.argv[1]))
tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (8, 12)).astype(np.int32)
positions = np.broadcast_to(np.arange(12, dtype=np.int32), (8, 12))

def loss(params, tokens, positions):
    model = nnx.merge(graph, params)
    hidden = transformer.hidden_states(model, tokens, positions, jnp.ones_like(tokens))
    logits = transformer.logits(hidden, transformer.head_weight(model))
    return -jax.nn.log_softmax(logits)[..., 3].mean(), logits

def decoded(params, tokens):
    model = transformer.decode_weights(nnx.merge(graph, params))
    _, cache = transformer.prefill(model, cfg, tokens, jnp.full(8, 7, jnp.int32))
    hidden, _ = transformer.decode_step(model, cfg, tokens[:, 7], cache)
    return transformer.logits(hidden, model.head)

learn, decode = jax.value_and_grad(loss, has_aux=True), decoded
one = jax.device_get((jax.jit(learn)(whole, tokens, positions), jax.jit(decode)(whole, tokens)))
same = dict(rtol=1e-5, atol=2e-5)

for way, sizes in [("dense", dict(expert=4, fsdp=2)), ("grouped", dict(expert=2, fsdp=2, tensor=2)),
                   ("grouped", dict(expert=4, data=2, fsdp=1)), ("dense", dict(fsdp=8))]:
    experts.chosen = lambda cfg: way
    mesh = meshes.make(config.Mesh(**sizes))
    shardings = rules.param_shardings(weights.abstract_params(cfg), mesh)
    rows = rules.leading(mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(whole, shardings)
        gate = placed["layers"]["gate"].get_value()
        held = gate.addressable_shards[0].data.shape[1]
        assert held == 8 // (mesh.shape["expert"] * mesh.shape["fsdp"]), held
        ids = [jax.device_put(x, rows) for x in (tokens, positions)]
        step = jax.jit(lambda *a: learn(*a), out_shardings=((None, None), shardings))
        program = step.lower(placed, *ids).compile()
        made = program(placed, *ids)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **same), made, one[0])
    text = program.as_text()
    print(way, sizes, {kind: text.count(f" {kind}(") for kind in
                       ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")})

mesh = meshes.for_rollouts(mesh, 2)
with jax.set_mesh(mesh):
    decode = jax.jit(lambda *a: decoded(*a))
    made = decode(jax.device_put(whole, rules.param_shardings(whole, mesh)), tokens)
    np.testing.assert_allclose(made, one[1], **same)
"""


@pytest.mark.heavy
def test_a_mesh_with_experts_apart_changes_no_number(tmp_path):
    folder = tiny.model_folder(tmp_path, "qwen3_moe", vocab_size=264)
    print(other_process.on_eight_devices(SCRIPT, str(folder)))
