"""What an update reports: sums over tokens that microbatches add up, and maxima."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.learner.batch import Rows, Samples
from sdjax.learner.logprobs import TokenOutputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sums:
    """Scalars of a microbatch: `total` adds up over microbatches, of `largest` the max counts."""

    total: dict[str, jax.Array]
    largest: dict[str, jax.Array]


def token_sums(
    micro: Rows,
    samples: Samples,
    outputs: TokenOutputs,
    old: jax.Array,
    sampler_weight: jax.Array,
    clipped: tuple[jax.Array, jax.Array] | None,
) -> Sums:
    """Returns a microbatch's sums, each divided by the whole update's token count.

    `distill/...` is over tokens of distilled completions, the rest over those of all that have a
    row; `epistemic/...` is over distilled ones where there is a teacher, and its _sum are of the
    tokens that take part in an epistemic word. `clipped` is where the policy's clip and its dual
    clip took the gradient away, None where there is no policy loss.
    """
    mask = micro.sample >= 0
    distilled = mask & samples.distilled[jnp.maximum(micro.sample, 0)]
    tokens = jnp.maximum(jnp.sum(jnp.where(samples.learned, samples.length, 0)), 1)
    distilled_tokens = jnp.maximum(jnp.sum(jnp.where(samples.distilled, samples.length, 0)), 1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, x, 0.0)) / tokens

    def mean_distilled(x: jax.Array, where: jax.Array | bool = True) -> jax.Array:
        return jnp.sum(jnp.where(distilled & where, x, 0.0)) / distilled_tokens

    gap = micro.sampler_logprobs - old
    total = {
        "student/entropy": mean(outputs.student_entropy),
        "sampler/kl": mean(gap),
        "sampler/weight_mean": mean(sampler_weight),
        "sampler/weight_square": mean(sampler_weight**2),
        "sampler/abs_gap": mean(jnp.abs(gap)),
    }
    largest = {
        "sampler/weight_max": jnp.max(jnp.where(mask, sampler_weight, 0.0)),
        "sampler/abs_gap_max": jnp.max(jnp.where(mask, jnp.abs(gap), 0.0)),
    }
    if clipped is not None:
        by_clip, by_dual_clip = (x.astype(jnp.float32) for x in clipped)
        total |= {"policy/clipped": mean(by_clip), "policy/dual_clipped": mean(by_dual_clip)}
    if micro.teacher is not None:
        push = outputs.teacher_logprob - outputs.student_logprob
        total |= {
            "distill/divergence": mean_distilled(outputs.divergence),
            "distill/reverse_kl": mean_distilled(outputs.reverse_kl),
            "distill/teacher_entropy": mean_distilled(outputs.teacher_entropy),
            "distill/student_entropy": mean_distilled(outputs.student_entropy),
            "distill/top1_agreement": mean_distilled(outputs.top1_agree),
            "distill/push": mean_distilled(push),
            "epistemic/token_share": mean_distilled(jnp.ones_like(push), micro.epistemic),
            "epistemic/others_share": mean_distilled(jnp.ones_like(push), ~micro.epistemic),
            "epistemic/push_sum": mean_distilled(push, micro.epistemic),
            "epistemic/student_entropy_sum": mean_distilled(
                outputs.student_entropy, micro.epistemic
            ),
            "epistemic/teacher_entropy_sum": mean_distilled(
                outputs.teacher_entropy, micro.epistemic
            ),
        }
    else:
        entropy = outputs.student_entropy
        total |= {
            "epistemic/token_share": mean(jnp.where(micro.epistemic, 1.0, 0.0)),
            "epistemic/others_share": mean(jnp.where(micro.epistemic, 0.0, 1.0)),
            "epistemic/student_entropy_sum": mean(jnp.where(micro.epistemic, entropy, 0.0)),
        }
    return Sums(total=total, largest=largest)


def of_update(sums: Sums) -> dict[str, jax.Array]:
    """Returns the update's metrics from the sums of all its microbatches, each [M]."""
    out = {k: jnp.sum(x) for k, x in sums.total.items()}
    out |= {k: jnp.max(x) for k, x in sums.largest.items()}
    mean, square = out["sampler/weight_mean"], out.pop("sampler/weight_square")
    out["sampler/effective_share"] = mean**2 / jnp.maximum(square, 1e-20)
    return out


def of_step(updates: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Returns a step's metrics: means over its updates, and of what ends in _max the largest.

    Of epistemic tokens and of the others those means that exist: none without such tokens, as
    where nothing is distilled.
    """
    out = {
        name: float((np.max if name.endswith("_max") else np.mean)([u[name] for u in updates]))
        for name in updates[0]
    }
    share, others = out["epistemic/token_share"], out.pop("epistemic/others_share")
    taught = "distill/push" in out
    wholes = {"push": "distill/push", "teacher_entropy": "distill/teacher_entropy"}
    wholes["student_entropy"] = "distill/student_entropy" if taught else "student/entropy"
    for name, whole in wholes.items():
        inside = out.pop(f"epistemic/{name}_sum", None)
        if inside is None:
            continue
        if share > 0:
            out[f"epistemic/{name}"] = inside / share
        if others > 0:
            out[f"epistemic/{name}_others"] = (out[whole] - inside) / others
    return out
