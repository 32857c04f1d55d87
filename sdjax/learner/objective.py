"""Computes the loss of a microbatch and the metrics of an update, without whole logits.

The loss of a token is divided by counts of the whole update. So sums over microbatches, chunks,
rows and devices are exact: none of these, nor which completions share a row, changes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax import config
from sdjax.config.sections.target import STUDENT
from sdjax.learner.batch import Batch, ContextRows, Rows, Samples
from sdjax.learner.chunked_head import (
    LIVE,
    Context,
    Contexts,
    HeadSpec,
    TokenOutputs,
    Tokens,
    of_teacher,
    token_loss,
    token_outputs,
)
from sdjax.learner.state import Others, TrainState
from sdjax.models.network import lora
from sdjax.models.network.transformer import Transformer, head_matrix, hidden_states
from sdjax.objectives import credits, learn_from, policy_gradient, targets, token_weights


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What an update minimises: all that the learner reads of a training's config."""

    loss: config.Loss
    policy: config.Policy
    teacher: config.Teacher
    target: config.Target
    temperature: float
    """Logits of student and teacher are divided by it, as when completions are sampled."""
    off_policy: bool
    """Whether a step makes several updates, so that all but the first are off policy."""

    @classmethod
    def of(cls, cfg: config.Train) -> Objective:
        """Returns the objective of a training."""
        return cls(
            loss=cfg.loss,
            policy=cfg.policy,
            teacher=cfg.teacher,
            target=cfg.target,
            temperature=cfg.rollout.temperature,
            off_policy=cfg.optim.minibatches > 1,
        )

    @property
    def needs_whole_completions(self) -> bool:
        """Whether the loss of a token depends on other tokens, as in GSPO off policy.

        In a step of one update every ratio is 1, whatever the other tokens are.
        """
        has_policy = self.loss.distillation < 1
        chosen = self.loss.distillation > 0 and self.choice.whole
        credited = has_policy and self.credit.whole
        return (
            chosen
            or credited
            or (self.off_policy and has_policy and self.policy.ratio == "sequence")
        )

    @property
    def choice(self) -> learn_from.LearnRule:
        """What the divergence learns from."""
        return learn_from.get(self.loss.learn_from)

    @property
    def credit(self) -> credits.CreditRule:
        """How tokens get their credit in the policy loss."""
        return credits.get(self.policy.credit)

    @property
    def targets(self) -> tuple[str, ...]:
        """The contexts of the target; () where nothing is distilled."""
        return targets.contexts(self.target) if self.loss.distillation > 0 else ()

    @property
    def contexts(self) -> tuple[str, ...]:
        """The contexts that the teacher runs in: those of the target, then those of the credit."""
        credited = self.credit.contexts if self.loss.distillation < 1 else ()
        return tuple(dict.fromkeys(self.targets + credited))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GradientSums:
    """Sums so far of gradients, float32, which a loss adds its own to; None: it adds none."""

    layers: lora.Trained | None = None
    """For hidden_states, shaped as the trained parameters of the layers."""
    head: jax.Array | None = None
    """For token_loss or token_outputs, [D, V] or [V, D] as head_matrix returns a head."""


NO_SUMS = GradientSums()

MEAN_WEIGHT = "mean_weight"
"""The sum by which the loss of an update is divided, where a choice asks for it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sums:
    """Scalars of a microbatch: an update adds up `total` and takes the maximum of `largest`."""

    total: dict[str, jax.Array]
    largest: dict[str, jax.Array]


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
    graphdef: nnx.GraphDef,
    objective: Objective,
    params: nnx.State,
    gradients: GradientSums,
    state: TrainState,
    micro: Batch,
) -> tuple[jax.Array, tuple[Sums, TokenRecord]]:
    """Returns the loss of a microbatch, its metric sums and its tokens' record.

    Args:
        graphdef: The model's structure.
        objective: What is minimised.
        params: The trained parameters, by which the loss is differentiated.
        gradients: The sums that the student's gradients are added to.
        state: Holds the frozen parameters, and the teacher's on the device.
        micro: A batch whose rows are those of one microbatch, [R, ...].
    """
    rows, cfg, number = micro.rows, objective.loss, micro.samples.length.shape[0]
    share = {"distillation": cfg.distillation, "policy": 1.0 - cfg.distillation}

    def per_token(outputs: TokenOutputs, known: Known) -> jax.Array:
        parts = _parts(objective, number, outputs, known)
        return sum((share[name] * x for name, x in parts.items()), jnp.zeros(()))

    known = _known(rows, micro.samples, cfg)
    whole = state.model_params(params)
    contexts, spec = contexts_of(
        graphdef, objective, whole, state.teacher_params, rows, gradients.layers
    )
    tokens = Tokens(token=rows.token, mask=rows.sample >= 0, route=rows.route)
    if objective.needs_whole_completions:
        outputs = token_outputs(contexts, tokens, spec, gradients.head)
        loss = jnp.sum(jnp.where(tokens.mask, per_token(outputs, known), 0.0))
    else:
        tokens = replace(tokens, known=known)
        loss, outputs = token_loss(per_token, contexts, tokens, spec, gradients.head)
    outputs = jax.lax.stop_gradient(outputs)
    parts = _parts(objective, number, outputs, known)
    losses = {f"loss/{k}": jnp.sum(jnp.where(tokens.mask, x, 0.0)) for k, x in parts.items()}
    losses["loss/total"] = loss
    sums = token_sums(objective, micro, outputs, known)
    sums = replace(sums, total=sums.total | jax.lax.stop_gradient(losses))
    taught = bool(rows.contexts) and bool(objective.targets)
    record = TokenRecord(
        student_logprob=outputs.student_logprob,
        teacher_logprob=outputs.teacher_logprob if taught else None,
        student_entropy=outputs.student_entropy,
        teacher_entropy=outputs.teacher_entropy if taught else None,
    )
    return loss, (sums, record)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Known:
    """What the loss of a token reads next to the models' outputs, [R, C] each or a slice of it."""

    token: jax.Array
    index: jax.Array
    sample: jax.Array
    epistemic: jax.Array
    sampler_logprobs: jax.Array
    old_logprobs: jax.Array | None  # None: the current ones
    length: jax.Array  # of the token's completion
    pass_rate: jax.Array
    correct: jax.Array
    unlikely_below: jax.Array
    distilled: jax.Array
    advantage: jax.Array
    distillation_weight: jax.Array  # of a token in the aggregated loss
    policy_weight: jax.Array


def _known(rows: Rows, samples: Samples, cfg: config.Loss) -> Known:
    sample = jnp.maximum(rows.sample, 0)
    weights = partial(
        token_weights.aggregation_weights,
        samples.length,
        aggregation=cfg.aggregation,
        constant=cfg.constant_length,
    )
    distilled = weights(samples.distilled, average_over=cfg.average_over)
    everyone = weights(jnp.ones_like(samples.distilled), average_over="all")
    return Known(
        token=rows.token,
        index=rows.index,
        sample=rows.sample,
        epistemic=rows.epistemic,
        sampler_logprobs=rows.sampler_logprobs,
        old_logprobs=rows.old_logprobs,
        length=samples.length[sample],
        pass_rate=samples.pass_rate[sample],
        correct=samples.correct[sample],
        unlikely_below=samples.unlikely_below[sample],
        distilled=samples.distilled[sample],
        advantage=samples.advantage[sample],
        distillation_weight=distilled[sample],
        policy_weight=everyone[sample],
    )


def _parts(
    objective: Objective, num_samples: int, outputs: TokenOutputs, known: Known
) -> dict[str, jax.Array]:
    """Returns each token's part of the distillation loss and of the policy loss, where they run."""
    cfg, logprob = objective.loss, outputs.student_logprob
    old = jax.lax.stop_gradient(logprob) if known.old_logprobs is None else known.old_logprobs
    sampler_weight = _sampler_weight(known, old, cfg)
    parts = {}
    if cfg.distillation > 0:
        # What scales the divergence carries no gradient (arXiv:2601.20802 eq. 3).
        scheme = token_weights.TOKEN_WEIGHTS[cfg.token_weights]
        weight = scheme(_stats(outputs, known), cfg)
        if cfg.learn_from != "all":
            weight *= _chosen(objective, num_samples, outputs, known)
        if cfg.importance_clip is not None:
            weight *= policy_gradient.importance_ratio(logprob, old, cfg.importance_clip)
        weight = sampler_weight * weight
        parts["distillation"] = known.distillation_weight * weight * outputs.divergence
    if cfg.distillation < 1:
        loss = policy_gradient.policy_loss(
            logprob,
            old,
            _credit(objective, num_samples, outputs, known),
            objective.policy,
            sample=known.sample,
            num_samples=num_samples,
        )
        parts["policy"] = known.policy_weight * sampler_weight * loss
    return parts


def _stats(outputs: TokenOutputs, known: Known) -> token_weights.TokenStats:
    """Returns the facts that token weights may read, without gradient."""
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
        correct=known.correct,
    )
    return jax.lax.stop_gradient(stats)


def _chosen(
    objective: Objective, num_samples: int, outputs: TokenOutputs, known: Known
) -> jax.Array:
    """Returns the weight of each token in what is learned, without gradient."""
    mean = learn_from.completion_mean(known.sample, num_samples)
    return objective.choice.weight(_stats(outputs, known), objective.loss, mean)


def _credit(
    objective: Objective, num_samples: int, outputs: TokenOutputs, known: Known
) -> jax.Array:
    """Returns the advantage of each token, without gradient."""
    mean = learn_from.completion_mean(known.sample, num_samples)
    facts = credits.CreditFacts(
        advantage=known.advantage,
        distilled=known.distilled,
        student_logprob=outputs.student_logprob,
        context_logprobs=outputs.context_logprobs,
        unlikely=known.sampler_logprobs < known.unlikely_below,
    )
    return objective.credit.credit(jax.lax.stop_gradient(facts), objective.policy, mean)


def _sampler_weight(known: Known, old: jax.Array, cfg: config.Loss) -> jax.Array:
    """Returns min(trainer / sampler, clip) of each token's probability, without gradient.

    Truncated importance sampling, because a sampler may compute other values than the trainer.
    """
    if cfg.sampler_clip is None:
        return jnp.ones_like(old)
    return policy_gradient.importance_ratio(old, known.sampler_logprobs, cfg.sampler_clip)


def contexts_of(
    graphdef: nnx.GraphDef,
    objective: Objective,
    params: nnx.State,
    teacher_params: nnx.State | Others | None,
    rows: Rows,
    layer_sums: lora.Trained | None = None,
) -> tuple[Contexts, HeadSpec]:
    """Runs student and teacher over a microbatch; returns both contexts and how to compare them.

    Args:
        graphdef: The model's structure.
        objective: What is minimised.
        params: The parameters of the whole student.
        teacher_params: The teacher's own, on the device, or other models that teach; None where it
            has the student's.
        rows: The rows of one microbatch, [R, ...].
        layer_sums: The sums that the gradients of the student's layers are added to.
    """
    student = nnx.merge(graphdef, params)
    read: dict[str, tuple[Transformer, ContextRows, lora.Trained | None]]
    read = {STUDENT: (student, rows.student, layer_sums)}
    turned: tuple[str, ...] = ()
    if rows.contexts:
        for at, teacher in _teachers(graphdef, objective.teacher, params, teacher_params).items():
            names = {of_teacher(name, at): name for name in objective.contexts}
            read |= {key: (teacher, rows.contexts[name], None) for key, name in names.items()}
            if teacher.cfg.tie_embeddings != student.cfg.tie_embeddings:
                turned += tuple(names)
        if objective.teacher.kind == "trust_region" and objective.targets:
            live = nnx.merge(graphdef, jax.lax.stop_gradient(params))
            read[LIVE] = (live, rows.contexts[objective.targets[0]], None)
    contexts, routed = {}, tuple(objective.teacher.models)
    for name, (model, of, sums) in read.items():
        hidden = _predicting(model, of, sums, _taught(rows, routed, name))
        contexts[name] = Context(hidden=hidden, head=head_matrix(model))
    policy = objective.loss.distillation < 1
    spec = HeadSpec(
        loss=objective.loss,
        temperature=objective.temperature,
        vocab_first=student.cfg.tie_embeddings,
        turned=turned,
        target=objective.target if objective.targets else None,
        credited=objective.credit.contexts if policy and rows.contexts else (),
        teachers=routed,
        mix=objective.teacher.mix,
        of_logprob=policy,
    )
    return Contexts(student=contexts.pop(STUDENT), teachers=contexts), spec


def _taught(rows: Rows, teachers: tuple[str, ...], name: str) -> jax.Array | None:
    """Returns bool[]: whether one of several teachers teaches a completion of the microbatch.

    None where the context `name` is not one that belongs to one of several.
    """
    _, several, teacher = name.partition("/")
    if not several or rows.route is None:
        return None
    return jnp.any(rows.route == teachers.index(teacher))


def _predicting(
    model: Transformer, of: ContextRows, sums: lora.Trained | None, runs: jax.Array | None
) -> jax.Array:
    """Returns the hidden states that predict completion tokens, [R, C, D].

    Where `runs`, bool[], is False, the model does not run: they are 0.
    """

    def states() -> jax.Array:
        packed = of.packed
        hidden = hidden_states(model, packed.tokens, packed.positions, packed.segment_ids, sums)
        return jnp.take_along_axis(hidden, of.index[..., None], axis=1)

    if runs is None:
        return states()
    shape = jax.eval_shape(states)
    return jax.lax.cond(runs, states, lambda: jnp.zeros(shape.shape, shape.dtype))


def _teachers(
    graphdef: nnx.GraphDef,
    cfg: config.Teacher,
    params: nnx.State,
    teacher_params: nnx.State | Others | None,
) -> dict[str, Transformer]:
    """Returns the models that read the teacher's contexts, without gradient; "" if it is one."""
    if isinstance(teacher_params, dict):
        return {
            name: nnx.merge(other.graphdef, jax.lax.stop_gradient(other.params))
            for name, other in teacher_params.items()
        }
    own = params if teacher_params is None else teacher_params
    # A teacher of adapters alone shares the rest of the model with the student.
    if teacher_params is not None and lora.NAME in params:
        own = lora.joined(teacher_params, params)
    if cfg.adapter_scale != 1 and lora.NAME in own:
        own = lora.scaled(own, cfg.adapter_scale)
    teacher = nnx.merge(graphdef, jax.lax.stop_gradient(own))
    if cfg.kind in ("initial", "trust_region") and hasattr(teacher, lora.NAME):
        del teacher.adapters
    return {"": teacher}


def token_sums(objective: Objective, micro: Batch, outputs: TokenOutputs, known: Known) -> Sums:
    """Returns the sums of a microbatch, each divided by the token count of the whole update.

    `distill/...` is over tokens of distilled completions, the rest over tokens of all completions
    with a row. `epistemic/...` is over distilled ones where a teacher runs; its _sum are over
    tokens of epistemic words.
    """
    rows, samples = micro.rows, micro.samples
    mask = rows.sample >= 0
    distilled = mask & samples.distilled[jnp.maximum(rows.sample, 0)]
    count = jnp.maximum(jnp.sum(jnp.where(samples.learned, samples.length, 0)), 1)
    distilled_count = jnp.maximum(jnp.sum(jnp.where(samples.distilled, samples.length, 0)), 1)

    def mean(x: jax.Array, where: jax.Array = mask, count: jax.Array = count) -> jax.Array:
        return jnp.sum(jnp.where(where, x, 0.0)) / count

    old = outputs.student_logprob if rows.old_logprobs is None else rows.old_logprobs
    weight, gap = _sampler_weight(known, old, objective.loss), rows.sampler_logprobs - old
    total = {
        "student/entropy": mean(outputs.student_entropy),
        "student/fork_rate": mean(outputs.student_fork),
        "student/high_entropy": mean(outputs.student_high),
        "sampler/kl": mean(gap),
        "sampler/weight_mean": mean(weight),
        "sampler/weight_square": mean(weight**2),
        "sampler/abs_gap": mean(jnp.abs(gap)),
    }
    largest = {
        "sampler/weight_max": _largest(jnp.where(mask, weight, 0.0)),
        "sampler/abs_gap_max": _largest(jnp.where(mask, jnp.abs(gap), 0.0)),
    }
    if objective.loss.distillation < 1:
        policy, number = objective.policy, samples.length.shape[0]
        ratio = policy_gradient.log_ratio(
            outputs.student_logprob, old, policy, sample=rows.sample, num_samples=number
        )
        credit = _credit(objective, number, outputs, known)
        clips = policy_gradient.was_clipped(ratio, credit, policy)
        # Without a ratio nobody knows whether it was clipped.
        is_number = jnp.isfinite(ratio + credit)
        by_clip, by_dual_clip = (jnp.where(is_number, x, jnp.nan) for x in clips)
        total |= {"policy/clipped": mean(by_clip), "policy/dual_clipped": mean(by_dual_clip)}
    taught_rows = bool(rows.contexts) and bool(objective.targets)
    compared, over = (distilled, distilled_count) if taught_rows else (mask, count)
    inside = partial(mean, where=compared & rows.epistemic, count=over)
    one = jnp.ones_like(gap)
    total |= {
        "epistemic/token_share": inside(one),
        "epistemic/others_share": mean(one, compared & ~rows.epistemic, over),
        "epistemic/student_entropy_sum": inside(outputs.student_entropy),
    }
    if taught_rows:
        push = outputs.teacher_logprob - outputs.student_logprob
        taught = partial(mean, where=distilled, count=distilled_count)
        total |= {
            "distill/divergence": taught(outputs.divergence),
            "distill/reverse_kl": taught(outputs.reverse_kl),
            "distill/teacher_entropy": taught(outputs.teacher_entropy),
            "distill/student_entropy": taught(outputs.student_entropy),
            "distill/student_fork_rate": taught(outputs.student_fork),
            "distill/teacher_fork_rate": taught(outputs.teacher_fork),
            "distill/high_entropy": taught(outputs.student_high),
            "distill/teacher_fork_sum": taught(outputs.student_high * outputs.teacher_fork),
            "distill/top1_agreement": taught(outputs.top1_agree),
            "distill/push": taught(push),
            "epistemic/push_sum": inside(push),
            "epistemic/teacher_entropy_sum": inside(outputs.teacher_entropy),
        }
        if objective.choice.over_mean:
            chosen = _chosen(objective, samples.length.shape[0], outputs, known) / known.length
            learning = jnp.maximum(jnp.sum(samples.distilled), 1)
            total[MEAN_WEIGHT] = mean(chosen, distilled, learning)
    return Sums(total=total, largest=largest)


def _largest(x: jax.Array) -> jax.Array:
    """Returns the largest value; NaN if one is, because XLA may leave a NaN out of a maximum."""
    return jnp.where(jnp.isnan(x).any(), jnp.nan, jnp.max(x))


def update_metrics(
    sums: Sums, batch: Batch
) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
    """Returns the loss of an update, its divisor and its metrics, from the sums of microbatches.

    Each sum is [M]. The loss is divided already; a divisor of None is 1.
    """
    del batch
    out = {k: jnp.sum(x) for k, x in sums.total.items()}
    out |= {k: _largest(x) for k, x in sums.largest.items()}
    mean, square = out["sampler/weight_mean"], out.pop("sampler/weight_square")
    out["sampler/effective_share"] = mean**2 / jnp.maximum(square, 1e-20)
    divisor = out.pop(MEAN_WEIGHT, None)
    if divisor is not None:  # The whole loss is the divergence: see learn_from.check.
        divisor = jnp.where(divisor > 0, divisor, 1.0)  # 0 where nothing is distilled
        out |= {name: out[name] / divisor for name in ("loss/total", "loss/distillation")}
    return out["loss/total"], divisor, out


def step_metrics(updates: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Returns the metrics of a step: means over its updates; of names in _max the largest value.

    `epistemic/...` has the means of epistemic tokens and of the others, and `..._fork_share` those
    of positions where the student's entropy is high. A mean over no tokens is left out, as where
    nothing is distilled.
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
    return out | _fork_shares(out)


def _fork_shares(out: dict[str, float]) -> dict[str, float]:
    """Returns the shares of forks where the student's entropy is high; takes their sums out."""
    high, high_taught = (out.pop(f"{of}/high_entropy", 0.0) for of in ("student", "distill"))
    of_teacher, shares = out.pop("distill/teacher_fork_sum", 0.0), {}
    if high > 0:
        shares["student/fork_share"] = out["student/fork_rate"] / high
    if high_taught > 0:
        shares["distill/student_fork_share"] = out["distill/student_fork_rate"] / high_taught
        shares["distill/teacher_fork_share"] = of_teacher / high_taught
    return shares
