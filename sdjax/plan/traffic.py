"""Computes the bytes that one chip receives over links in an update.

For an array of B bytes split over g chips, each chip receives B (g - 1) / g to gather it. It
receives the same to get its part of a sum over chips, and twice that to get the whole sum.
"""

from __future__ import annotations

from sdjax.models import flops as sizes
from sdjax.models.network.model_config import ModelConfig
from sdjax.plan.workload import MeshSizes, Workload


def update(w: Workload) -> dict[str, float]:
    """Returns the bytes of one update with all its microbatches, by purpose.

    weights: layers gathered over fsdp in the compute dtype. They are gathered for the student's
    forward pass, for its recomputation and backward pass together, and for each pass of a teacher.
    Heads are gathered once each.

    gradients: sums over fsdp, of which each chip keeps its part, so the bytes count once. The
    layers' gradients are summed in the compute dtype as their products arrive, the head's in
    float32. The embedding's gradient is split by columns and needs no sum.

    replicas: whole sums of these parts over data, which cross the network between slices. The
    embedding's gradient is a separate sum, in one array with the head if they are tied.

    activations: exchanges of tensor parallelism.

    experts: with mesh.expert, each device gathers the tokens of the others along that axis and
    scatters their sums: in a forward pass, its recomputation and the backward pass. Matrices of
    experts are gathered and summed over fsdp alone.

    This is the minimum, because a compiler may move more. It may sum gradients whole, which doubles
    their bytes. The TPU compiler does so for column-split matrices with fewer than 256 columns per
    chip, mostly on three-dimensional slices and in programs of an 8B model. It may sum the head's
    gradient once, after the loop of microbatches. With more tokens per shard than MLP columns it
    may gather matrices over tensor in place of activations. docs/scaling.md lists the compiled
    programs.
    """
    model, mesh = w.model, w.mesh
    item, teachers = sizes.itemsize(model), w.teachers
    fsdp, data, tensor = (_share(n) for n in (mesh.fsdp, mesh.data, mesh.tensor))
    layers = _layers(model, mesh) / mesh.tensor
    head = model.vocab_size * model.embed / mesh.tensor
    passes = 1 if model.remat == "none" else 2
    of_teacher = sum(_layers(m, mesh) + m.vocab_size * m.embed for m in w.taught_by)
    weights = item * fsdp * (layers * passes + head + teachers * of_teacher / mesh.tensor)
    gradients = fsdp * (item * layers + 4 * head)
    replicas = 2 * data * (item * layers + 2 * 4 * head) / mesh.fsdp
    entries = w.rows * 3 * w.student * model.embed * model.num_layers
    read = w.rows * teachers * w.teacher
    entries += read * sum(m.embed * m.num_layers for m in w.taught_by)
    parts = {
        "weights": weights,
        "gradients": gradients,
        "replicas": replicas,
        "activations": 2 * (item + 4) * tensor * entries,
    }
    if mesh.expert > 1:
        parts["experts"] = (mesh.expert - 1) * (item + 4) * entries
        dense = model.num_layers * (sizes.layer_params(model) - sizes.expert_params(model))
        copies = item * dense / mesh.tensor + 2 * 4 * head
        parts["replicas"] += 2 * _share(mesh.expert) * copies / mesh.fsdp
    return {name: size * w.microbatches for name, size in parts.items()}


def rollout_weights(w: Workload) -> float:
    """Returns the bytes of moving the weights from the layout of training to that of rollouts, once
    per step."""
    model, shards = w.model, w.mesh.rollout_tensor or w.mesh.tensor
    entries = model.num_layers * sizes.layer_params(model) + 2 * model.vocab_size * model.embed
    return sizes.itemsize(model) * entries / shards * _share(w.mesh.fsdp * w.mesh.expert)


def _layers(model: ModelConfig, mesh: MeshSizes) -> float:
    """Returns the entries of all layers that a device along `expert` computes with."""
    experts = sizes.expert_params(model)
    return model.num_layers * (sizes.layer_params(model) - experts + experts / mesh.expert)


def _share(chips: int) -> float:
    return (chips - 1) / chips
