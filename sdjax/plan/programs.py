"""Compiles a training's programs for TPUs that this machine lacks, and reads the compiler's report.

Arrays are abstract, so nothing is computed and no array of the model's size is held. A program
takes about a minute. https://docs.jax.dev/en/latest/aot.html
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax import config
from sdjax.errors import UserError, writing
from sdjax.learner import adamw, state, update
from sdjax.learner import batch as batches
from sdjax.learner.objective import Objective
from sdjax.models.network.model_config import LayerKind, ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import mesh as meshes
from sdjax.parallel import rules
from sdjax.plan import hlo
from sdjax.plan.slices import Slice
from sdjax.plan.workload import Workload
from sdjax.rollout.engine import sampler as samplers
from sdjax.rollout.engine import slots as slot_arrays
from sdjax.teacher import contexts

REMATERIALIZED = "Involuntary full rematerialization"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The compiler's report of one program, per chip."""

    name: str
    arguments: int
    """Bytes of the arguments. Results that replace arguments do not count again."""
    temporaries: int
    """Largest number of further bytes at any moment, with results that replace no argument."""
    host: int
    """Bytes of arguments in the host's memory."""
    traffic: dict[str, float]
    """Bytes that the chip receives over links in one call, by collective."""
    overlap: float
    """Share of these bytes that move while the chip computes; 1 where none move."""
    rematerialized: bool
    """Whether the compiler gathered a whole array because it found no better way."""

    @property
    def total(self) -> int:
        """Bytes on the chip."""
        return self.arguments + self.temporaries


def require_compiler() -> None:
    """Raises UserError if this machine cannot compile for TPUs; keeps the compiler silent.

    Call it before jax starts.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compile is True: compiling for a TPU needs libtpu: pip install 'sdjax[tpu]', or "
            "--no_compile for arithmetic alone"
        )
    # Without these settings libtpu looks for TPUs in this machine and in its neighbours.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def topology_mesh(piece: Slice, shape: meshes.MeshShape) -> jax.sharding.Mesh:
    """Returns the mesh of a slice, which this machine need not have; data spans the slices first.

    Raises UserError if the TPU compiler does not know the slice.
    """
    from jax.experimental import topologies

    more: dict[str, Any] = {"num_slices": piece.count} if piece.count > 1 else {}
    if piece.chip.name == "v4":  # by default each of its two cores would be a device
        more["chip_config_name"] = "megacore"
    if piece.shape.startswith("1x"):  # by default a host has 2 x 2 chips
        more["chips_per_host_bounds"] = [*map(int, piece.shape.split("x")), 1][:3]
    topology = f"{piece.chip.name}:{piece.shape}"
    try:
        with _errors_of_compiler():
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as error:  # the compiler raises no specific class
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"topology is {topology!r}: the TPU compiler: {reason}") from None
    return meshes.over(described.devices, shape)


def train_step(work: Workload, mesh: jax.sharding.Mesh) -> Compiled:
    """Compiles one update with a batch of the longest rows."""
    cfg, graphdef, abstract = _model(work)
    tx = adamw.make(cfg.optim)
    others = {}
    if cfg.teacher.kind == "model":
        for name, model in zip(cfg.teacher.paths, work.taught_by, strict=True):
            graph, params = nnx.split(_abstract(model))
            others[name] = state.OtherModel(graphdef=graph, params=params)
    shardings = state.shardings(abstract, tx, cfg.teacher, mesh, others)
    init = state.initialiser(tx, cfg.teacher, shardings)
    start = jax.eval_shape(init, abstract)
    start = replace(start, teacher_params=others) if others else start
    batch = abstract_batch(work)
    with jax.set_mesh(mesh):
        return _compiled(
            "update",
            update.make_train_step(
                graphdef, Objective.of(cfg), cfg.optim, shardings, cfg.model.remat
            ),
            _placed(start, shardings),
            _placed(batch, update.batch_shardings(batch, mesh)),
            loops=work.microbatches,
        )


def rollout(work: Workload, mesh: jax.sharding.Mesh, *, every_layer: bool) -> list[Compiled]:
    """Compiles prefill and decode with a full cache; their bytes exclude the train state.

    The layers of these programs are unrolled. Unless `every_layer`, they are compiled with one
    period of the model's windows (at least 2 layers) and with two. Each further period adds the
    difference.
    """
    model = work.model
    few = max(2, _period(model.layers))
    if every_layer or model.num_layers <= 2 * few:
        return _rollout(work, mesh)
    one, two = (_rollout(_with_layers(work, n * few), mesh) for n in (1, 2))
    more = model.num_layers / few - 2
    return [_extended(a, b, more) for a, b in zip(one, two, strict=True)]


def _rollout(work: Workload, mesh: jax.sharding.Mesh) -> list[Compiled]:
    _, graphdef, abstract = _model(work)
    sampler = samplers.make(
        graphdef,
        work.model,
        mesh,
        stop_ids=(1, 2),
        pad_id=0,
        tensor=work.mesh.rollout_tensor,
    )
    programs, mesh = sampler.programs, sampler.mesh
    split, rep = rules.leading(mesh), rules.replicated(mesh)
    rows, width = work.prefill_rows, work.prompt
    with jax.set_mesh(mesh):
        weights = _placed(jax.eval_shape(sampler.weights, abstract), sampler.weight_shardings)
        slots = jax.eval_shape(lambda: programs.empty(rows=work.slots, capacity=work.capacity))
        how = jax.eval_shape(lambda: slot_arrays.settings(config.Sampling()))
        return [
            _compiled(
                "prefill",
                programs.prefill,
                weights,
                jax.ShapeDtypeStruct((rows, width), jnp.int32, sharding=split),
                jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=split),
                rows=work.prefill_kept,
            ),
            _compiled(
                "decode",
                programs.decode,
                weights,
                _placed(slots, slot_arrays.shardings(work.model, mesh)),
                jax.eval_shape(lambda: jax.random.key(0)),
                _placed(how, jax.tree.map(lambda _: rep, how)),
                jax.ShapeDtypeStruct((), jnp.int32, sharding=rep),
                loops=sampler.schedule.steps,
                steps=sampler.schedule.steps,
            ),
        ]


def _period(layers: tuple[LayerKind, ...]) -> int:
    """Returns the number of layers after which the kinds of layers repeat."""
    for n in range(1, len(layers)):
        if all(kind == layers[i % n] for i, kind in enumerate(layers)):
            return n
    return len(layers)


def _with_layers(work: Workload, layers: int) -> Workload:
    model = replace(work.model, num_layers=layers, layers=work.model.layers[:layers])
    return replace(work, model=model)


def _extended(one: Compiled, two: Compiled, more: float) -> Compiled:
    """Returns `two` plus `more` times the difference between `two` and `one`."""

    def further(a: float, b: float) -> float:
        return b + more * (b - a)

    kinds = two.traffic.keys() | one.traffic.keys()
    return replace(
        two,
        arguments=round(further(one.arguments, two.arguments)),
        temporaries=round(further(one.temporaries, two.temporaries)),
        traffic={k: further(one.traffic.get(k, 0.0), two.traffic.get(k, 0.0)) for k in kinds},
        rematerialized=one.rematerialized or two.rematerialized,
    )


def abstract_batch(work: Workload) -> batches.Batch:
    """Returns the abstract arrays of an update whose rows all have the longest length."""
    cfg, m, r = work.cfg, work.microbatches, work.cfg.optim.microbatch
    packed = cfg.optim.row_tokens > 0

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    of_token, known = array(m, r, work.completion), array(m, r, work.completion, dtype=jnp.float32)

    def context(width: int) -> batches.ContextRows:
        tokens = array(m, r, width)
        ids = tokens if packed else None
        rows = batches.Packed(tokens=tokens, segment_ids=ids, positions=tokens)
        return batches.ContextRows(packed=rows, index=of_token)

    rows = batches.Rows(
        student=context(work.student),
        contexts={name: context(work.teacher) for name in contexts.used(cfg)},
        token=of_token,
        sample=of_token,
        index=of_token,
        sampler_logprobs=known,
        old_logprobs=known if cfg.optim.minibatches > 1 else None,
        epistemic=array(m, r, work.completion, dtype=jnp.bool_),
        route=of_token if cfg.teacher.route else None,
    )
    update = work.completions // cfg.optim.minibatches
    samples = batches.Samples(
        advantage=array(update, dtype=jnp.float32),
        distilled=array(update, dtype=jnp.bool_),
        learned=array(update, dtype=jnp.bool_),
        pass_rate=array(update, dtype=jnp.float32),
        correct=array(update, dtype=jnp.bool_),
        unlikely_below=array(update, dtype=jnp.float32),
        length=array(update),
        route=array(update) if cfg.teacher.route else None,
    )
    return batches.Batch(
        rows=rows, samples=samples, microbatches=array(), padding=array(dtype=jnp.float32)
    )


def _model(work: Workload) -> tuple[config.Train, nnx.GraphDef, nnx.State]:
    return work.cfg, *nnx.split(_abstract(work.model))


def _abstract(model: ModelConfig) -> Transformer:
    return nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0)))


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _compiled(name: str, program: Any, *args: Any, loops: int = 1, **static: Any) -> Compiled:
    """Compiles a program; `loops` is the trip count of a loop whose bound the program computes."""
    with _errors_of_compiler() as said:
        try:
            compiled = program.lower(*args, **static).compile()
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the TPU compiler refuses the {name}: {reason}") from None
    memory = compiled.memory_analysis()
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = hlo.collectives(compiled.as_text(), jax.sharding.get_abstract_mesh().size, loops)
    return Compiled(
        name=name,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + own,
        host=memory.host_argument_size_in_bytes,
        traffic=hlo.by_kind(found),
        overlap=hlo.overlap(found),
        rematerialized=REMATERIALIZED in "".join(said),
    )


@contextlib.contextmanager
def _errors_of_compiler() -> Iterator[list[str]]:
    """Yields a list that holds the process's stderr output after the block ends."""
    kept, said = os.dup(2), list[str]()
    with writing(os.environ.get("TMPDIR", "/tmp")):
        file = tempfile.TemporaryFile("w+b")
    with file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
