"""The forward and backward passes compile for a TPU slice, on a machine without a TPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from sdjax.models.network.model_config import LayerKind, ModelConfig
from sdjax.models.network.transformer import Transformer, hidden_states
from sdjax.parallel import rules

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
names = ("data", "expert", "fsdp", "tensor")
mesh = Mesh(np.array(devices).reshape(1, 1, 2, 2), names, axis_types=(AxisType.Auto,) * 4)
for head_dim in map(int, sys.argv[1:]):
    cfg = ModelConfig(
        family="olmo3", vocab_size=512, num_layers=2, embed=256, mlp=512, num_heads=4,
        num_kv_heads=2, head_dim=head_dim, max_positions=1024, attention="splash",
        layers=(LayerKind(), LayerKind(window=100)),
    )
    graph, params = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    params = jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s),
        params,
        rules.param_shardings(params, mesh),
    )
    ids = jax.ShapeDtypeStruct((4, 200), jnp.int32, sharding=rules.leading(mesh))

    def loss(params, tokens, positions, segment_ids):
        hidden = hidden_states(nnx.merge(graph, params), tokens, positions, segment_ids)
        return hidden.astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, ids, ids, ids).compile().as_text()
    print(head_dim, text.count('custom_call_target="tpu_custom_call"'))
"""


@pytest.mark.heavy
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install jax[tpu]"
)
@pytest.mark.parametrize(
    "head_dim", [64, *(pytest.param(n, marks=pytest.mark.slow) for n in (128, 256))]
)
def test_splash_attention_compiles_for_a_tpu_slice_forward_and_backward(head_dim):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(head_dim)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Each of the two kinds of layers runs the kernel forward, once more in the recomputation,
    # and two kernels backward.
    assert done.stdout.strip() == f"{head_dim} 8", done.stdout
    assert "Involuntary full rematerialization" not in done.stderr
