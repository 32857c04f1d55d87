"""Counts the bytes on a chip, by use, from the sizes of a step.

The counts follow the programs of learner/ and rollout/. Parameters, Adam and gradients are float32,
and gradients are added in place. The teacher follows config.Teacher. Activations between layers are
float32. Every shard of the batch holds the whole head and its gradient. The compiler decides how
many temporaries of a layer or a chunk live at the same time. TPU_LAYER, TPU_GAPS and LOGITS are
measurements of that.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdjax.models import flops as sizes
from sdjax.models.network.model_config import ModelConfig
from sdjax.plan.workload import MeshSizes, Workload
from sdjax.rollout.engine.generation import FREE_SHARE

USES = (
    "parameters",
    "Adam",
    "teacher",
    "gradients",
    "kept activations",
    "a layer",
    "head",
    "logits",
    "between arrays",
    "rollout weights",
    "KV cache",
    "sampling",
)
LOGITS = 3.1
"""Float32 arrays of a chunk's logits that exist at the same time. Measured: 1.9 GB for chunks of
1,024 x 151,936 on an H100 (dev/log/2026-11-performance.md)."""


TPU_LAYER = 24
"""Bytes per entry of a layer's MLP while the layer is differentiated; the TPU compiler keeps them
in addition to the head's. Measured on Qwen3-8B with rows of 22,528 and 43,008 tokens on
v5p:4x4x4."""
TPU_GAPS = 0.2
"""Unused space between temporaries in the TPU's heap, as a share of the temporaries. Measured on
the same programs."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """The bytes that one chip holds at the fullest moment of a phase."""

    phase: str
    by_use: dict[str, float]

    @property
    def total(self) -> float:
        """The sum over all uses."""
        return sum(self.by_use.values())


def params(cfg: ModelConfig) -> int:
    """Returns the number of entries of all matrices: layers, embedding, head. Norms and biases are
    negligible."""
    tables = 1 if cfg.tie_embeddings else 2
    return cfg.num_layers * sizes.layer_params(cfg) + tables * cfg.vocab_size * cfg.embed


def active(cfg: ModelConfig) -> int:
    """Returns the number of those entries that a token uses: few of experts, all of the others."""
    unused = sizes.layer_params(cfg) - sizes.active_params(cfg)
    return params(cfg) - cfg.num_layers * unused


def on_chip(cfg: ModelConfig, mesh: MeshSizes) -> float:
    """Returns the number of entries of all matrices on one chip of a training."""
    experts = cfg.num_layers * sizes.expert_params(cfg)
    return (params(cfg) - experts + experts / mesh.expert) / mesh.param_shards


def trained(cfg: ModelConfig) -> int:
    """Returns the number of trained entries: all of `params`, or those of the adapters.

    An adapter of a matrix has rank x (inputs + outputs) entries.
    """
    if cfg.lora is None:
        return params(cfg)
    heads, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    other = {"q": heads, "k": kv, "v": kv, "o": heads}
    ends = sum(cfg.embed + other.get(name, cfg.mlp) for name in cfg.lora.matrices)
    return cfg.num_layers * cfg.lora.rank * ends


def update(w: Workload, *, tpu: bool = False) -> Bytes:
    """Returns the bytes of the train step when backward passes hold the head's gradient."""
    model, mesh = w.model, w.mesh
    held = _state(w, teacher_on_device=True)
    tokens, dtype = w.rows * w.student / mesh.tensor, sizes.itemsize(model)
    vocab = model.vocab_size / mesh.tensor
    chunk = min(w.cfg.loss.chunk_tokens, w.rows * w.completion)
    head, others = model.embed * vocab, w.teachers * sum(m.embed for m in w.taught_by)
    heads = w.teachers * sum(m.embed * m.vocab_size for m in w.taught_by) / mesh.tensor
    rows_split = mesh.batch_shards > 1
    own = 0.0 if model.lora else 4 * head * (1 + rows_split / mesh.fsdp)
    by_use = held | {
        "gradients": 4 * _trained_on_chip(w),
        "kept activations": _kept(w) * tokens,
        "a layer": _layer(w) * tokens * mesh.tensor,
        # Each shard of the batch holds the head's whole gradient in float32, and then its part of
        # the sum over shards. Without shards the gradient is added directly to the gradients; the
        # CPU compiler then keeps one copy more than the GPU compiler. Each shard also holds whole
        # copies of the head in the compute dtype.
        "head": dtype * (head + heads) + own,
        "logits": LOGITS * 4 * chunk * vocab
        + 2 * dtype * w.rows * w.completion * (model.embed + others),
    }
    if tpu:
        widest = TPU_LAYER * sizes.inner(model) / mesh.tensor + 2 * _copies(w, model)
        by_use["a layer"] = widest * w.rows * w.student
    else:  # the logits are freed before the layers are differentiated
        by_use["a layer"] = max(by_use["a layer"] - by_use["logits"], 0.0)
    if w.cfg.teacher.kind == "model":
        by_use["a layer"] = max(by_use["a layer"], *(_teacher_layer(w, m) for m in w.taught_by))
    if model.lora:  # merged matrices of a layer in float32 and rounded, and one gradient
        merged = sizes.layer_params(model) - sizes.expert_params(model)
        by_use["a layer"] += (8 + dtype) * merged / mesh.tensor
    if model.experts:  # the gathered matrices of a layer's experts, and their gradient
        gathered = sizes.expert_params(model) / (mesh.expert * mesh.tensor)
        by_use["a layer"] += dtype * gathered * (1 if model.lora else 2)
    if tpu:
        by_use["between arrays"] = TPU_GAPS * (sum(by_use.values()) - sum(held.values()))
    return Bytes(phase="update", by_use=by_use)


def rollout(w: Workload) -> Bytes:
    """Returns the bytes of decoding with all slots full, including the waiting train state."""
    model, token = w.model, token_bytes(w)
    rows = w.slots / w.mesh.copies
    shards = w.mesh.rollout_tensor or w.mesh.tensor
    schedule = max(4096, w.prompt)  # tokens of prefilled prompts, which exist twice
    by_use = _state(w, teacher_on_device=w.cfg.teacher.location == "device") | {
        "rollout weights": sizes.itemsize(model) * (params(model) + _untied(model)) / shards,
        "KV cache": rows * w.capacity * token * (1 + 1 / (2 * model.num_layers)),
        "sampling": 32 * rows * model.vocab_size / shards + 2 * token * schedule,
    }
    return Bytes(phase="rollout", by_use=by_use)


def slots_that_fit(w: Workload, memory: float) -> int:
    """Returns the number of slots, over all chips, that rollout/engine/generation.py would take."""
    nothing = Bytes(phase="", by_use=rollout(w).by_use | {"KV cache": 0.0, "sampling": 0.0})
    token, copies = token_bytes(w), w.mesh.copies
    room = FREE_SHARE * (memory - nothing.total) - 2 * token * max(4096, w.prompt)
    slot = token * w.capacity * (1 + 1 / (2 * w.model.num_layers)) + 32 * w.model.vocab_size
    fit = int(room / slot)
    return 0 if fit < 1 else (1 << (fit.bit_length() - 1)) * copies


def token_bytes(w: Workload) -> float:
    """Returns the bytes of one token's keys and values on one chip."""
    shards = w.mesh.rollout_tensor or w.mesh.tensor
    entries = 2 * w.model.num_layers * w.model.num_kv_heads * w.model.head_dim
    return entries * sizes.itemsize(w.model) / shards


def _untied(model: ModelConfig) -> int:
    """Returns the entries that decoding adds for a tied head, because it keeps a separate copy."""
    return model.vocab_size * model.embed if model.tie_embeddings else 0


def _state(w: Workload, *, teacher_on_device: bool) -> dict[str, float]:
    model, teacher, mesh = w.model, w.cfg.teacher, w.mesh
    each = _trained_on_chip(w)
    own = 4 if teacher.dtype == "float32" else 2
    # With adapters, an initial teacher is the model without them and needs no memory.
    size: float = {"live": 0, "ema": 4}.get(teacher.kind, 0 if model.lora else own)
    if teacher.kind == "refreshed" and model.lora:
        size = 4
    if teacher.kind == "model":
        others = sum(sizes.itemsize(m) * on_chip(m, mesh) for m in w.taught_by)
        size = others / each if w.teachers else 0
    frozen = sizes.itemsize(model) * on_chip(model, mesh) if model.lora else 0
    held = {"parameters": 4 * each + frozen, "Adam": 8 * each}
    return held | ({"teacher": size * each} if teacher_on_device and size else {})


def _trained_on_chip(w: Workload) -> float:
    """Returns the number of trained entries on one chip."""
    if w.model.lora is None:
        return on_chip(w.model, w.mesh)
    return trained(w.model) / w.mesh.param_shards


def _kept(w: Workload) -> float:
    """Returns the bytes per token that the forward pass keeps, over all layers."""
    m, dtype = w.model, sizes.itemsize(w.model)
    stream = 4 * m.embed
    heads, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    # The layer's matrix products: q, k, o, down in float32; v, gate, up in the compute dtype.
    # Grouped products of experts are not kept with "dots".
    inner = sizes.inner(m)
    mlp = 4 * m.embed + dtype * 2 * inner
    products = 4 * (heads + kv + m.embed) + dtype * kv + (0 if m.experts else mlp)
    # Other activations: norms, rotated queries and keys, attention, silu and the MLP's product.
    norms = 4 if m.norm_placement == "both" else 2
    between: float = dtype * (norms * m.embed + 3 * heads + kv + inner) + 4 * inner
    between += (mlp + _copies(w, m)) if m.experts else 0.0
    more = {"full": 0.0, "dots": products, "none": products + between}[m.remat]
    return m.num_layers * (stream + more)


def _teacher_layer(w: Workload, m: ModelConfig) -> float:
    """Returns the bytes while a layer of `m` reads the teacher's rows, with its weights."""
    tensor, dtype, tokens = w.mesh.tensor, sizes.itemsize(m), w.rows * w.teacher
    widest = (4 + dtype) * m.embed + (2 * dtype + 4) * sizes.inner(m) + _copies(w, m)
    experts = sizes.expert_params(m)
    matrices = sizes.layer_params(m) - experts + experts / w.mesh.expert
    return (tokens * widest + dtype * matrices) / tensor


def _layer(w: Workload) -> float:
    """Returns the bytes per token while one layer is recomputed and differentiated."""
    m, tensor = w.model, w.mesh.tensor
    dtype = sizes.itemsize(m)
    stream = (4 + 4 + dtype) * m.embed / tensor
    return stream + (2 * dtype + 4) * sizes.inner(m) / tensor + 2 * _copies(w, m)


def _copies(w: Workload, m: ModelConfig) -> float:
    """Returns the bytes per token of what experts add to a layer: a token's copies, one for each
    expert that it runs, and their outputs in float32. With mesh.expert, a device has room for the
    routes of all tokens that it gathers, because any number of them may be to its experts."""
    if m.experts is None:
        return 0.0
    dtype, routes = sizes.itemsize(m), m.experts.per_token * w.mesh.expert
    more = (w.mesh.expert - 1) * (2 * dtype + 4) * sizes.inner(m) / w.mesh.tensor
    return routes * (dtype + 4) * m.embed + more
