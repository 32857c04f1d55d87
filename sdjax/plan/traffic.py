"""Bytes that come over links into one chip in an update, by formula.

Of an array of B bytes split over g chips each receives B (g - 1) / g to have it whole, as much to
have its part of a sum over chips, and twice that to have the whole sum.
"""

from __future__ import annotations

from sdjax.models import flops as sizes
from sdjax.plan.workload import Workload


def update(w: Workload) -> dict[str, float]:
    """Returns the bytes of one update, of all its microbatches, by purpose.

    weights: layers gathered over fsdp in the compute dtype, for the student's forward pass, for
    the recomputation and backward pass together, and for every pass of a teacher; heads once each.
    gradients: their sums over fsdp, of which each chip keeps its part (so once the bytes, not
    twice): layers' in the compute dtype, as their products come, the head's in float32; the
    embedding's comes by columns and needs none. replicas: the sums of these parts over data, whole,
    which between slices cross the network; the embedding's is a sum of its own, of one array with
    the head or not. activations: what tensor parallelism exchanges.

    This is the least. A compiler may sum gradients whole, twice their bytes: that of TPUs does so
    of matrices split by columns of which each chip would keep fewer than 256, on three-dimensional
    slices of all, and in programs of an 8B model. It may also sum the head's once, behind the loop
    of microbatches, and with more tokens a shard than an MLP has columns gather matrices over
    tensor in place of activations. docs/scaling.md has what was compiled.
    """
    model, mesh = w.model, w.mesh
    item, teachers = sizes.itemsize(model), w.teachers
    fsdp, data, tensor = (_share(n) for n in (mesh.fsdp, mesh.data, mesh.tensor))
    layers = model.num_layers * sizes.layer_params(model) / mesh.tensor
    head = model.vocab_size * model.embed / mesh.tensor
    passes = (1 if model.remat == "none" else 2) + teachers
    weights = item * fsdp * (layers * passes + head * (1 + teachers))
    gradients = fsdp * (item * layers + 4 * head)
    replicas = 2 * data * (item * layers + 2 * 4 * head) / mesh.fsdp
    exchanged = 2 * (item + 4) * model.embed * tensor * model.num_layers
    tokens = w.rows * (3 * w.student + teachers * w.teacher)
    parts = {
        "weights": weights,
        "gradients": gradients,
        "replicas": replicas,
        "activations": exchanged * tokens,
    }
    return {name: size * w.microbatches for name, size in parts.items()}


def rollout_weights(w: Workload) -> float:
    """Returns the bytes of a step's one change from the layout of training to that of rollouts."""
    model, shards = w.model, w.mesh.rollout_tensor or w.mesh.tensor
    entries = model.num_layers * sizes.layer_params(model) + 2 * model.vocab_size * model.embed
    return sizes.itemsize(model) * entries / shards * _share(w.mesh.fsdp)


def _share(chips: int) -> float:
    return (chips - 1) / chips
