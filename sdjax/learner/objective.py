"""The loss of a microbatch: what every completion token adds, summed without whole logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax import config
from sdjax.learner.accumulate import GradientSums
from sdjax.learner.batch import Packed, Rows, Samples
from sdjax.learner.logprobs import TokenOutputs, token_loss, token_outputs
from sdjax.learner.update_metrics import token_sums
from sdjax.models.network import lora
from sdjax.models.network.transformer import head_matrix, hidden_states
from sdjax.objectives import aggregation, policy_gradient, token_weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """What the rollout log keeps of every token, float32[M, R, C] in the order of the batch.

    The teacher's are None where none runs.
    """

    student_logprob: jax.Array
    teacher_logprob: jax.Array | None
    student_entropy: jax.Array  # nats
    teacher_entropy: jax.Array | None


def microbatch_loss(
    params: nnx.State,
    teacher_params: nnx.State | None,
    micro: Rows,
    samples: Samples,
    graphdef: nnx.GraphDef,
    cfg: config.Train,
    gradients: GradientSums,
) -> tuple[jax.Array, tuple[Any, TokenRecord]]:
    """Returns a microbatch's share of the loss, its metric sums and what is kept of its tokens.

    `gradients` is what the student's gradients are added to.
    """
    known = _known(micro, samples, cfg)
    parts = partial(_parts, cfg=cfg, num_samples=samples.length.shape[0])
    share = {"distillation": cfg.loss.distillation, "policy": 1.0 - cfg.loss.distillation}

    def per_token(outputs: TokenOutputs, known: Known) -> jax.Array:
        return sum((share[k] * x for k, x in parts(outputs, known).items()), jnp.zeros(()))

    contexts = contexts_of(params, teacher_params, micro, graphdef, cfg, gradients)
    token, mask = micro.token, micro.sample >= 0
    if _needs_whole_completions(cfg):
        outputs = token_outputs(token=token, mask=mask, **contexts)
        total = jnp.sum(jnp.where(mask, per_token(outputs, known), 0.0))
    else:
        total, outputs = token_loss(
            per_token,
            token=token,
            extras=known,
            mask=mask,
            of_logprob=cfg.loss.distillation < 1,
            **contexts,
        )
    outputs = jax.lax.stop_gradient(outputs)
    old = outputs.student_logprob if known.old_logprobs is None else known.old_logprobs
    sums = token_sums(
        micro,
        samples,
        outputs,
        old,
        _sampler_weight(known, old, cfg),
        _clipped(outputs, known, old, cfg, samples.length.shape[0]),
    )
    losses = {k: jnp.sum(jnp.where(mask, x, 0.0)) for k, x in parts(outputs, known).items()}
    losses = {f"loss/{k}": x for k, x in losses.items()} | {"loss/total": total}
    sums = replace(sums, total=sums.total | jax.lax.stop_gradient(losses))
    return total, (sums, _record(outputs, taught=micro.teacher is not None))


def _record(outputs: TokenOutputs, *, taught: bool) -> TokenRecord:
    return TokenRecord(
        student_logprob=outputs.student_logprob,
        teacher_logprob=outputs.teacher_logprob if taught else None,
        student_entropy=outputs.student_entropy,
        teacher_entropy=outputs.teacher_entropy if taught else None,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Known:
    """What the loss at a token takes beside the models' outputs, [R, C] each or a slice of it."""

    token: jax.Array
    index: jax.Array
    sample: jax.Array
    epistemic: jax.Array
    sampler_logprobs: jax.Array
    old_logprobs: jax.Array | None  # None: the current ones
    length: jax.Array  # of the token's completion
    pass_rate: jax.Array
    advantage: jax.Array
    distillation_weight: jax.Array  # of a token in the aggregated loss
    policy_weight: jax.Array


def _known(micro: Rows, samples: Samples, cfg: config.Train) -> Known:
    sample = jnp.maximum(micro.sample, 0)
    weights = partial(
        aggregation.weights,
        samples.length,
        aggregation=cfg.loss.aggregation,
        constant=cfg.loss.constant_length,
    )
    distilled = weights(samples.distilled, average_over=cfg.loss.average_over)
    everyone = weights(jnp.ones_like(samples.distilled), average_over="all")
    return Known(
        token=micro.token,
        index=micro.index,
        sample=micro.sample,
        epistemic=micro.epistemic,
        sampler_logprobs=micro.sampler_logprobs,
        old_logprobs=micro.old_logprobs,
        length=samples.length[sample],
        pass_rate=samples.pass_rate[sample],
        advantage=samples.advantage[sample],
        distillation_weight=distilled[sample],
        policy_weight=everyone[sample],
    )


def _parts(
    outputs: TokenOutputs, known: Known, *, cfg: config.Train, num_samples: int
) -> dict[str, jax.Array]:
    """Returns what each token adds to the distillation and to the policy loss, where they run."""
    logprob = outputs.student_logprob
    old = jax.lax.stop_gradient(logprob) if known.old_logprobs is None else known.old_logprobs
    sampler_weight = _sampler_weight(known, old, cfg)
    parts = {}
    if cfg.loss.distillation > 0:
        weight = sampler_weight * _token_weight(outputs, known, old, cfg)
        parts["distillation"] = known.distillation_weight * weight * outputs.divergence
    if cfg.loss.distillation < 1:
        loss = policy_gradient.policy_loss(
            logprob, old, known.advantage, cfg.policy, sample=known.sample, num_samples=num_samples
        )
        parts["policy"] = known.policy_weight * sampler_weight * loss
    return parts


def _clipped(
    outputs: TokenOutputs, known: Known, old: jax.Array, cfg: config.Train, num_samples: int
) -> tuple[jax.Array, jax.Array] | None:
    """Returns where the two clips took the policy gradient away; None without a policy loss."""
    if cfg.loss.distillation == 1:
        return None
    ratio = policy_gradient.log_ratio(
        outputs.student_logprob, old, cfg.policy, sample=known.sample, num_samples=num_samples
    )
    return policy_gradient.was_clipped(ratio, known.advantage, cfg.policy)


def _token_weight(
    outputs: TokenOutputs, known: Known, old: jax.Array, cfg: config.Train
) -> jax.Array:
    """Returns what scales the divergence at a token (arXiv:2601.20802 eq. 3), without gradient."""
    stats = token_weights.TokenStats(
        token=known.token,
        index=known.index,
        length=known.length,
        student_logprob=outputs.student_logprob,
        teacher_logprob=outputs.teacher_logprob,
        student_entropy=outputs.student_entropy,
        teacher_entropy=outputs.teacher_entropy,
        pass_rate=known.pass_rate,
        epistemic=known.epistemic,
    )
    weight = token_weights.get(cfg.loss.token_weights)(jax.lax.stop_gradient(stats), cfg.loss)
    if cfg.loss.importance_clip is None:
        return weight
    return weight * policy_gradient.importance_ratio(
        outputs.student_logprob, old, cfg.loss.importance_clip
    )


def _sampler_weight(known: Known, old: jax.Array, cfg: config.Train) -> jax.Array:
    if cfg.loss.sampler_clip is None:
        return jnp.ones_like(old)
    return policy_gradient.sampler_weights(old, known.sampler_logprobs, cfg.loss.sampler_clip)


def _needs_whole_completions(cfg: config.Train) -> bool:
    """Returns whether the loss at a token depends on other tokens: GSPO off policy.

    In a step of one update the ratio is 1 whatever the other tokens are.
    """
    off_policy = cfg.optim.minibatches > 1 and cfg.loss.distillation < 1
    return off_policy and cfg.policy.ratio == "sequence"


def contexts_of(
    params: nnx.State,
    teacher_params: nnx.State | None,
    micro: Rows,
    graphdef: nnx.GraphDef,
    cfg: config.Train,
    gradients: GradientSums,
) -> dict[str, Any]:
    """Returns what the chunked head takes of both contexts, by the names of its arguments."""
    student = nnx.merge(graphdef, params)
    contexts = {
        "student_hidden": gathered(student, micro.student, micro.student_index, gradients.layers),
        "student_head": head_matrix(student),
        "head_sums": gradients.head,
        "teacher_hidden": None,
        "teacher_head": None,
        "vocab_first": student.cfg.tie_embeddings,
        "cfg": cfg.loss,
        "temperature": cfg.rollout.temperature,
    }
    if micro.teacher is None or micro.teacher_index is None:
        return contexts
    own = params if teacher_params is None else lora.joined(teacher_params, params)
    teacher = nnx.merge(graphdef, jax.lax.stop_gradient(own))
    if cfg.teacher.kind in ("initial", "trust_region") and hasattr(teacher, lora.NAME):
        del teacher.adapters
    contexts |= {
        "teacher_hidden": gathered(teacher, micro.teacher, micro.teacher_index),
        "teacher_head": head_matrix(teacher),
    }
    if cfg.teacher.kind == "trust_region":
        live = nnx.merge(graphdef, jax.lax.stop_gradient(params))
        contexts |= {
            "live_hidden": gathered(live, micro.teacher, micro.teacher_index),
            "live_head": head_matrix(live),
            "mix": cfg.teacher.mix,
        }
    return contexts


def gathered(
    model: Any, rows: Packed, index: jax.Array, gradients: lora.Trained | None = None
) -> jax.Array:
    """Returns the hidden states at the positions that predict completion tokens, [R, C, D]."""
    hidden = hidden_states(model, rows.tokens, rows.positions, rows.segment_ids, gradients)
    return jnp.take_along_axis(hidden, index[..., None], axis=1)
