"""The train step and the sampler compile for a TPU slice, ahead of time and without a TPU."""

import other_process
import pytest

SLICES = {"v5e:2x2": (1, 4, 1)}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "what",
    [
        pytest.param("train_step", marks=pytest.mark.slow),  # the next line compiles one
        "train_step_of_packed_rows_with_teacher_on_host",
        "sampler",
    ],
)
@pytest.mark.parametrize("name", SLICES)
def test_compiles_for_a_tpu_slice(name, what):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install sdjax[tpu]")
    out = other_process.run(
        f"import test_tpu; test_tpu.compile_{what}({name!r}, {SLICES[name]!r})",
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        XLA_FLAGS="",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    assert "bytes a chip" in out


def slice_mesh(name, shape):
    """Returns the mesh of an abstract slice."""
    import jax
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    axes = (jax.sharding.AxisType.Auto,) * 4
    names, (data, *rest) = ("data", "expert", "fsdp", "tensor"), shape
    return jax.make_mesh((data, 1, *rest), names, axis_types=axes, devices=devices)


def model_parts():
    """Returns the structure and abstract params of a small Qwen3 with TPU-sized heads."""
    from flax import nnx

    from sdjax.models.network.model_config import LayerKind, ModelConfig
    from sdjax.models.network.transformer import Transformer

    cfg = ModelConfig(
        family="qwen3",
        vocab_size=1024,
        num_layers=2,
        embed=256,
        mlp=512,
        num_heads=4,
        num_kv_heads=2,
        head_dim=128,
        max_positions=2048,
        layers=(LayerKind(),) * 2,
        qk_norm="head",
        attention="splash",
    )
    return cfg, *nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))


def placed(tree, shardings):
    """Returns abstract arrays with shardings."""
    import jax

    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def compile_train_step_of_packed_rows_with_teacher_on_host(name, shape):
    """Runs in the subprocess."""
    compiled = compile_train_step(name, shape, {"location": "host"}, {"row_tokens": 160})
    memory = compiled.memory_analysis()
    assert memory.host_argument_size_in_bytes > 0


def compile_train_step(name, shape, teacher=None, optim=None):
    """Runs in the subprocess."""
    import jax
    import learning

    mesh = slice_mesh(name, shape)
    cfg = learning.train_config(teacher=teacher or {}, optim=optim or {})
    _, graphdef, abstract = model_parts()
    tx = learning.adamw.make(cfg.optim)
    shardings = learning.state.shardings(abstract, tx, cfg.teacher, mesh)
    step = learning.update.make_train_step(
        graphdef, learning.objective.Objective.of(cfg), cfg.optim, shardings, cfg.model.remat
    )
    init = learning.state.initialiser(tx, cfg.teacher, shardings)
    batch = learning.pack(cfg)
    state = placed(jax.eval_shape(init, abstract), shardings)
    after = learning.update.make_after_step(cfg.teacher, shardings)
    with jax.set_mesh(mesh):
        init.lower(placed(abstract, shardings.params)).compile()
        after.lower(state).compile()
        compiled = step.lower(
            state, placed(batch, learning.update.batch_shardings(batch, mesh))
        ).compile()
    report(compiled)
    return compiled


def compile_sampler(name, shape):
    """Runs in the subprocess."""
    import jax
    import jax.numpy as jnp

    from sdjax import config
    from sdjax.parallel import rules
    from sdjax.rollout.engine import sampler
    from sdjax.rollout.engine.slots import settings

    mesh = slice_mesh(name, shape)
    cfg, graphdef, abstract = model_parts()
    made = sampler.make(graphdef, cfg, mesh, stop_ids=(1, 2), pad_id=0)
    programs = made.programs
    split, rep = rules.leading(made.mesh), rules.replicated(made.mesh)
    with jax.set_mesh(made.mesh):
        params = placed(abstract, rules.param_shardings(abstract, mesh))
        weights = compiled_on(made.weights, params)
        prompts = compiled_on(
            programs.prefill,
            weights,
            jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=split),
            jax.ShapeDtypeStruct((8,), jnp.int32, sharding=split),
            rows=2,
        )
        slots = compiled_on(programs.empty, rows=64, capacity=256)
        entries = jax.ShapeDtypeStruct((4, 8), jnp.int32, sharding=rep)
        slots = compiled_on(programs.insert, slots, prompts, entries)
        how = jax.eval_shape(lambda: settings(config.Sampling()))
        slots, _ = compiled_on(
            programs.decode,
            weights,
            slots,
            jax.eval_shape(lambda: jax.random.key(0)),
            placed(how, jax.tree.map(lambda _: rep, how)),
            jax.ShapeDtypeStruct((), jnp.int32, sharding=rep),
            steps=64,
        )
        rows = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split)
        compiled_on(programs.resize, slots.cache.keys[0], rows, capacity=512)


def compiled_on(program, *args, **static):
    """Compiles a jitted function, prints its bytes, and returns its abstract, sharded outputs."""
    import jax

    compiled = program.lower(*args, **static).compile()
    report(compiled)
    return placed(jax.eval_shape(program, *args, **static), compiled.output_shardings)


def report(compiled):
    """Prints the bytes that a chip holds."""
    memory = compiled.memory_analysis()
    print("bytes a chip", memory.argument_size_in_bytes + memory.temp_size_in_bytes)
