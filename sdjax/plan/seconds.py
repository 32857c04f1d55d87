"""Estimates the seconds of a step by phase, as a roofline of arithmetic, memory and links.

Work on the host, such as grading and reprompts, is not counted.
"""

from __future__ import annotations

from sdjax.models import flops as sizes
from sdjax.models.network.model_config import ModelConfig
from sdjax.plan import memory, traffic
from sdjax.plan.slices import Slice
from sdjax.plan.workload import Workload

# Shares of the chip's peak rates that sdjax reached on an H100 (dev/log/2026-11-performance.md).
ARITHMETIC = 0.6
BANDWIDTH = 0.6
LINKS = 0.8
HOP_S = 5e-6
"""Seconds of the smallest exchange between chips."""


def by_phase(w: Workload, piece: Slice, overlap: float | None = None) -> dict[str, float]:
    """Returns the seconds of one step, by phase.

    `overlap` is the share of an update's exchange that goes on during arithmetic, as its compiled
    program says. None takes that of the chip.
    """
    rates, chip = piece.chip.rates, piece.chip
    flops = piece.devices * rates.flops_per_s * ARITHMETIC
    links = chip.links * LINKS
    parts = {
        "weights to rollouts": traffic.rollout_weights(w) / links,
        "prefill": _prefill(w) / flops,
        "decode": decode(w, piece),
    }
    n, updates = w.completions, w.cfg.optim.minibatches
    student = w.row_tokens(w.mean_prompt, w.student)
    if updates > 1:
        head = sizes.head(round(n * w.mean_completion), w.model.embed, w.model.vocab_size)
        parts["old log-probabilities"] = (n * _forward(w.model, student) + head) / flops
    moved = traffic.update(w)
    # Rows of padding alone do not run, so packed rows count only as far as tokens fill them.
    filled = min(student / w.student, 1.0) if w.cfg.optim.row_tokens else 1.0
    between = (chip.network if piece.count > 1 else chip.links) * LINKS
    replicas = moved.pop("replicas")
    exchange = updates * filled * (sum(moved.values()) / links + replicas / between)
    hidden = chip.overlap if overlap is None else overlap
    computing = _update(w, student) / flops
    parts["update"] = max(computing, hidden * exchange) + (1 - hidden) * exchange
    return parts


def decode(w: Workload, piece: Slice) -> float:
    """Returns the seconds of decoding a step's completions.

    All slots stay full while completions wait. Then the longest completions continue alone, up to
    the limit.
    """
    model, rates = w.model, piece.chip.rates
    shards = w.mesh.rollout_tensor or w.mesh.tensor
    rows = min(w.slots, w.completions) / w.mesh.copies
    weights, alone = (sizes.weight_bytes(model, n) / shards for n in (rows, 1))
    cached = w.mean_prompt + w.mean_completion / 2
    token = sizes.cache_bytes(model, round(cached)) / shards
    bytes_per_s, flops = rates.bytes_per_s * BANDWIDTH, rates.flops_per_s * ARITHMETIC
    entries = model.num_layers * sizes.active_params(model) + model.embed * model.vocab_size
    full = max((weights + rows * token) / bytes_per_s, 2 * rows * entries / shards / flops)
    hops = 2 * model.num_layers * HOP_S if shards > 1 else 0.0
    steps = w.completions * w.mean_completion / max(w.slots, 1)
    tail = max(w.cfg.rollout.max_completion_tokens - w.mean_completion, 0)
    return steps * (full + hops) + tail * (alone / bytes_per_s + hops)


def _prefill(w: Workload) -> float:
    """Returns the operations of all prefills. Padding rows count, because every shard computes
    them."""
    calls = -(-w.cfg.rollout.prompts_per_step // w.prefill_kept)
    return calls * w.prefill_rows * sizes.forward(w.model, [w.prompt])


def _forward(model: ModelConfig, tokens: float) -> float:
    """Returns the operations of one forward pass over the tokens that one completion adds to the
    rows."""
    return sizes.forward(model, [round(tokens)])


def _update(w: Workload, student: float) -> float:
    """Returns the operations of a step's updates, including recomputation and padding."""
    again = {"full": 1.0, "dots": 0.2, "none": 0.0}[w.model.remat]
    one = (3 + again) * _forward(w.model, student)
    if w.teachers:
        read = w.row_tokens(w.mean_reprompt, w.teacher)
        one += w.teachers * sum(_forward(m, read) for m in w.taught_by)
    tokens = round(w.mean_completion)
    head = sizes.distilled_head(tokens, w.model.embed, w.model.vocab_size, 0)
    head += w.teachers * sum(sizes.head(tokens, m.embed, m.vocab_size) for m in w.taught_by)
    return w.completions * (one + head)


def fits(w: Workload, piece: Slice) -> bool:
    """Returns whether the estimates of both phases stay within a chip's memory."""
    fullest = max(memory.update(w, tpu=piece.chip.is_tpu).total, memory.rollout(w).total)
    return w.slots > 0 and fullest <= piece.chip.memory
