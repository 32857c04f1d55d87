"""Computes what student and teacher say of each token, from hidden states, chunk by chunk.

Logits exist in float32, for one chunk of positions at a time; no array has the shape [R, C, V].
Two functions lead to the same gradient:

    token_outputs   Any function of the outputs can be differentiated. The backward pass computes
                    the logits of each chunk a second time (12 N V D operations).
    token_loss      For a loss that is a sum over tokens. The forward pass takes its gradient while
                    the logits of a chunk exist (8 N V D operations).

The batch rule splits rows over devices. Rows do not move: every device scans its own tokens. The
gradients of the head are summed over devices once, at the end, and each shard of fsdp keeps its
part. The vocabulary may be split by its own rule: it is reduced over, never gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sdjax.config import Loss
from sdjax.config.sections.target import STUDENT, Target
from sdjax.models.network.attention import precision
from sdjax.objectives import forks, targets
from sdjax.objectives.divergences import (
    DIVERGENCES,
    compare,
    entropy,
    is_top,
    log_prob,
)
from sdjax.parallel import rules

LIVE = "live"
"""The entry of Contexts.teachers with the student's weights after the first context of the target,
for the trust-region teacher."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Context:
    """What a model computes of the completion tokens after one prompt."""

    hidden: jax.Array
    """[R, C, D]: hidden states at the positions that predict the tokens."""
    head: jax.Array
    """[D, V], or [V, D] as HeadSpec says."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Contexts:
    """The student in its own context, and every other model or context by name.

    `teachers` has an entry for each context that the target or a credit reads; {} where no teacher
    runs. It has LIVE where the teacher is a mixture with the student's weights.
    """

    student: Context
    teachers: dict[str, Context]

    def arrays(self, mask: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Returns hidden states and heads by name, in the dtype of the student's hidden states.

        Hidden states are 0 where `mask` bool[R, C] is False: whatever they hold, it causes no NaN.
        """
        named, dtype = {STUDENT: self.student, **self.teachers}, self.student.hidden.dtype
        at = mask[..., None]
        hidden = {name: jnp.where(at, x.hidden, 0).astype(dtype) for name, x in named.items()}
        return hidden, {name: x.head.astype(dtype) for name, x in named.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The completion tokens of rows, [R, C, ...], or a chunk of them, [c, ...]."""

    token: jax.Array
    """int32"""
    mask: jax.Array
    """bool: False where there is no token."""
    known: Any = None
    """A pytree of arrays that the loss reads. They get no gradient."""
    route: jax.Array | None = None
    """int32: which of HeadSpec.teachers teaches the token; None: there is only one."""


SDPO = Target()
"""The teacher's distribution after the reprompt."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """How the head turns hidden states into logits and compares them; static under jit."""

    loss: Loss
    temperature: float
    """Logits are divided by it."""
    vocab_first: bool = False
    """Heads are [V, D], as an embedding that is the head too: transposing it would copy it."""
    turned: tuple[str, ...] = ()
    """The contexts of a model whose head lies the other way: [D, V] with vocab_first, or [V, D]."""
    teachers: tuple[str, ...] = ()
    """Several models that teach, by name. Contexts.teachers then has an entry `of_teacher(context,
    name)` for each of them and each context, in place of the context's."""
    target: Target | None = SDPO
    """How the contexts make the target; None: nothing is distilled."""
    credited: tuple[str, ...] = ()
    """The contexts whose log-probabilities of the tokens the loss reads."""
    mix: float = 0.0
    """The share of the logits of LIVE in those of the target's first context (arXiv:2601.20802
    section 3.3)."""
    of_logprob: bool = True
    """False: the loss has no gradient by the student's log-probability, as pure distillation. Its
    gradient is then one pass over the logits, not two."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenOutputs:
    """What the models say of every token, float32[R, C]; 0 where the mask is False.

    The teacher's are those of the target. Only the divergence and the student's log-probability
    carry gradients. Without a target the teacher's fields are 0, and top1_agree says whether the
    student's likeliest token is the token itself.
    """

    divergence: jax.Array  # as Loss.divergence defines it, before weights
    student_logprob: jax.Array  # of the token
    teacher_logprob: jax.Array
    student_entropy: jax.Array  # nats, over the whole vocabulary
    teacher_entropy: jax.Array
    top1_agree: jax.Array  # 1.0 where both have the same likeliest token
    reverse_kl: jax.Array  # KL(student || teacher), nats, over the whole vocabulary
    # 1.0 where the entropy is high, and where the position is a fork, both at temperature 1.
    student_high: jax.Array
    student_fork: jax.Array
    teacher_fork: jax.Array
    # Of the token, in each of HeadSpec.credited.
    context_logprobs: dict[str, jax.Array] = field(default_factory=dict)


TokenLoss = Callable[[TokenOutputs, Any], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def token_outputs(
    contexts: Contexts, tokens: Tokens, spec: HeadSpec, head_sums: jax.Array | None = None
) -> TokenOutputs:
    """Returns the outputs of student and teacher at each token.

    Gradients go to the student's context only. Heads are cast to the dtype of the hidden states,
    and products accumulate in float32. The gradient of the head is summed in float32 and comes
    back in the dtype of the head, so pass the float32 parameter.

    `head_sums` is float32 and shaped like the head: the sum so far of its gradients. With it the
    gradient is added in place: the gradient by `head_sums` is the new sum, and the head gets none.
    """
    del head_sums
    return _without_gradient(_no_loss, contexts, tokens, spec)[1]


def _outputs_forward(
    contexts: Contexts, tokens: Tokens, spec: HeadSpec, head_sums: jax.Array | None
) -> tuple[TokenOutputs, Any]:
    outputs = _without_gradient(_no_loss, contexts, tokens, spec)[1]
    return outputs, (contexts, tokens, head_sums)


def _outputs_backward(
    spec: HeadSpec, saved: Any, g: TokenOutputs
) -> tuple[Contexts, None, jax.Array | None]:
    contexts, tokens, head_sums = saved
    tokens = replace(tokens, known=(g.divergence, g.student_logprob))
    _, (grads, sums, _) = _loss_and_gradient(_linear, contexts, tokens, spec, head_sums)
    if sums is None:
        head = grads.student.head.astype(contexts.student.head.dtype)
        grads = replace(grads, student=replace(grads.student, head=head))
    return grads, None, sums


def _no_loss(outputs: TokenOutputs, known: Any) -> jax.Array:
    del known
    return jnp.zeros_like(outputs.divergence)


def _linear(outputs: TokenOutputs, cotangent: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns a loss whose gradients are the cotangents of the two differentiable outputs."""
    return cotangent[0] * outputs.divergence + cotangent[1] * outputs.student_logprob


token_outputs.defvjp(_outputs_forward, _outputs_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def token_loss(
    loss: TokenLoss,
    contexts: Contexts,
    tokens: Tokens,
    spec: HeadSpec,
    head_sums: jax.Array | None = None,
) -> tuple[jax.Array, TokenOutputs]:
    """Returns the sum of `loss(outputs, tokens.known)` over tokens, and the outputs.

    The outputs carry no gradient.

    Args:
        loss: Maps any slice [c] of the outputs and of `tokens.known` to float32[c], what each
            token adds to the loss. It looks at one token at a time and closes over no arrays.
        contexts: As in token_outputs.
        tokens: The tokens, with what the loss knows of them.
        spec: How logits are computed and compared.
        head_sums: As in token_outputs. The sum must then be differentiated as it is and not, say,
            3 times it: the gradient of the head is added before a factor could reach it. Hidden
            states get NaN as their gradient otherwise.
    """
    del head_sums
    return _without_gradient(loss, contexts, tokens, spec)


def _without_gradient(
    loss: TokenLoss, contexts: Contexts, tokens: Tokens, spec: HeadSpec
) -> tuple[jax.Array, TokenOutputs]:
    axes, (hidden, heads) = _row_axes(), contexts.arrays(tokens.mask)

    def shard(hidden: dict, heads: dict, tokens: Tokens) -> tuple[jax.Array, TokenOutputs]:
        def chunk(total: jax.Array, arrays: Any) -> tuple[jax.Array, TokenOutputs]:
            hidden, tokens = arrays
            student, *others = logits(hidden, heads, spec, tokens.route)
            added, outputs = _chunk_loss(student, others, tokens, spec, loss)
            return total + added, outputs

        split = partial(_split, chunk_tokens=spec.loss.chunk_tokens)
        chunks = jax.tree.map(split, (hidden, tokens))
        total, outputs = jax.lax.scan(chunk, jnp.zeros(()), chunks)
        total = jax.lax.psum(total, axes) if axes else total
        return total, jax.tree.map(partial(_joined, shape=tokens.token.shape), outputs)

    out = PartitionSpec(), PartitionSpec(axes)
    return _on_shards(shard, axes, out)(hidden, heads, tokens)


def _loss_and_gradient(
    loss: TokenLoss,
    contexts: Contexts,
    tokens: Tokens,
    spec: HeadSpec,
    head_sums: jax.Array | None,
) -> tuple[tuple[jax.Array, TokenOutputs], Any]:
    """Returns the results of token_loss, and for its backward pass: gradient, new sums, dtype.

    The gradient of the head is float32. With `head_sums` it is in the new sums. The dtype is the
    head's, held by an empty array.
    """
    axes, (hidden, heads) = _row_axes(), contexts.arrays(tokens.mask)
    embed_axis = 1 if spec.vocab_first else 0

    def shard(hidden: dict, heads: dict, tokens: Tokens) -> Any:
        head = heads[STUDENT]

        def chunk(carry: Any, arrays: Any) -> tuple[Any, Any]:
            (total, head_grad), (hidden, tokens) = carry, arrays
            student, *others = logits(hidden, heads, spec, tokens.route)
            (added, outputs), logits_grad = jax.value_and_grad(_chunk_loss, has_aux=True)(
                student, others, tokens, spec, loss
            )
            # In the compute dtype, because the two products below run at its speed.
            logits_grad = (logits_grad / spec.temperature).astype(head.dtype)
            hidden_grad = _product(logits_grad, head, (1, 1 - embed_axis)).astype(head.dtype)
            x, y = hidden[STUDENT], logits_grad
            head_grad = head_grad + _product(*((y, x) if spec.vocab_first else (x, y)), (0, 0))
            return (total + added, head_grad), (outputs, hidden_grad)

        # Each of several shards has its own gradient here; the sums so far must count once.
        in_place = head_sums is not None and not axes
        start: Any = head_sums if in_place else jnp.zeros(head.shape, jnp.float32)
        split = partial(_split, chunk_tokens=spec.loss.chunk_tokens)
        chunks = jax.tree.map(split, (hidden, tokens))
        (total, head_grad), arrays = jax.lax.scan(chunk, (jnp.zeros(()), start), chunks)
        outputs, hidden_grad = jax.tree.map(partial(_joined, shape=tokens.token.shape), arrays)
        if axes:
            total = jax.lax.psum(total, axes)
            head_grad = _sum_over_shards(head_grad, axes, embed_axis)
        return total, outputs, hidden_grad, head_grad

    rows, whole = PartitionSpec(axes), PartitionSpec()
    head_part = PartitionSpec(*[None] * embed_axis, "fsdp" if "fsdp" in axes else None)
    on_shards = _on_shards(shard, axes, (whole, rows, rows, head_part))
    total, outputs, hidden_grad, head_grad = on_shards(hidden, heads, tokens)
    sums = None
    if head_sums is not None:
        sums, head_grad = (head_sums + head_grad if axes else head_grad), None
    student = Context(hidden=hidden_grad, head=head_grad)
    grads = Contexts(student=student, teachers=None)  # type: ignore[arg-type]
    return (total, outputs), (grads, sums, jnp.zeros((0,), contexts.student.head.dtype))


def _loss_backward(
    loss: TokenLoss, spec: HeadSpec, saved: Any, g: tuple[jax.Array, TokenOutputs]
) -> tuple[Contexts, None, jax.Array | None]:
    del loss, spec
    (grads, sums, like_head), scale, student = saved, g[0], saved[0].student
    if sums is None:
        student = replace(student, head=(scale * student.head).astype(like_head.dtype))
    else:  # The sums hold the head's gradient unscaled, so a factor would miss it.
        scale = jnp.where(scale == 1, 1.0, jnp.nan)
    student = replace(student, hidden=(scale * student.hidden).astype(student.hidden.dtype))
    return replace(grads, student=student), None, sums


token_loss.defvjp(_loss_and_gradient, _loss_backward)


def _chunk_loss(
    student: jax.Array,
    others: Sequence[Any],
    tokens: Tokens,
    spec: HeadSpec,
    loss: TokenLoss,
) -> tuple[jax.Array, TokenOutputs]:
    """Returns the loss of a chunk and its outputs [c], from logits float32[c, V].

    The gradient by the student's logits is that of the loss. `others` has the logits of the
    target, or None, and those of the credited contexts by name.
    """
    divergence = jnp.zeros(tokens.token.shape)
    # The one place that stops the gradient to the teacher.
    teacher, credited = jax.lax.stop_gradient(others)
    if teacher is not None:
        divergence = DIVERGENCES[spec.loss.divergence](student, teacher, tokens.token, spec.loss)
    logprob = log_prob(student, tokens.token)
    if not spec.of_logprob:
        logprob = jax.lax.stop_gradient(logprob)
    student = jax.lax.stop_gradient(student)
    outputs = _described(student, teacher, tokens, divergence, logprob, spec.temperature)
    of_contexts = {name: log_prob(x, tokens.token) for name, x in credited.items()}
    outputs = replace(outputs, context_logprobs=of_contexts)
    outputs = jax.tree.map(lambda x: jnp.where(tokens.mask, x, 0.0), outputs)
    return jnp.sum(jnp.where(tokens.mask, loss(outputs, tokens.known), 0.0)), outputs


def _described(
    student: jax.Array,
    teacher: jax.Array | None,
    tokens: Tokens,
    divergence: jax.Array,
    logprob: jax.Array,
    temperature: float,
) -> TokenOutputs:
    """Returns the outputs of a chunk, from its logits and the two outputs with a gradient."""
    zero = jnp.zeros_like(logprob)
    if teacher is None:
        own = entropy(student)
        high, fork = _forks(student, own, temperature)
        return TokenOutputs(
            divergence=divergence,
            student_logprob=logprob,
            teacher_logprob=zero,
            student_entropy=own[0],
            teacher_entropy=zero,
            top1_agree=_share(is_top(student, tokens.token), logprob),
            reverse_kl=zero,
            student_high=high,
            student_fork=fork,
            teacher_fork=zero,
        )
    pair = compare(student, teacher, tokens.token)
    high, fork = _forks(student, (pair.p_entropy, pair.p_open), temperature)
    return TokenOutputs(
        divergence=divergence,
        student_logprob=logprob,
        teacher_logprob=pair.q_log_prob,
        student_entropy=pair.p_entropy,
        teacher_entropy=pair.q_entropy,
        top1_agree=_share(pair.same_top, logprob + pair.q_log_prob),
        reverse_kl=pair.kl,
        student_high=high,
        student_fork=fork,
        teacher_fork=_forks(teacher, (pair.q_entropy, pair.q_open), temperature)[1],
    )


def _forks(
    logits: jax.Array, found: tuple[jax.Array, jax.Array], temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Returns 1.0 where the entropy at temperature 1 is high, and 1.0 where a fork is.

    `found` are the entropy and the open tokens of `logits`, which were divided by the temperature.
    """
    nats, open_tokens = found if temperature == 1.0 else entropy(temperature * logits)
    flags = forks.is_high(nats), forks.is_fork(nats, open_tokens)
    return _share(flags[0], nats), _share(flags[1], nats)


def _share(holds: jax.Array, of_logits: jax.Array) -> jax.Array:
    """Returns 1.0 where `holds`, else 0.0; NaN where `of_logits` is, because logits were."""
    return jnp.where(jnp.isfinite(of_logits), holds.astype(jnp.float32), jnp.nan)


def of_teacher(context: str, teacher: str) -> str:
    """Returns the name of what one of several teachers says in a context."""
    return f"{context}/{teacher}" if teacher else context


def logits(
    hidden: dict[str, jax.Array],
    heads: dict[str, jax.Array],
    spec: HeadSpec,
    route: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
    """Returns logits of the student, the target and each credited context, float32[c, V].

    The temperature is applied. `hidden` has [c, D] and `heads` the head of each context by name.
    Their D may differ. Rows of a teacher's head beyond the student's V stand for no token and are
    left out. The target's are None where no teacher runs or nothing is distilled. Where LIVE is
    there, the target's first context is the mixture with it. With `route`, int32[c], each token has
    the logits of the teacher that it names.
    """
    of, vocab = {}, heads[STUDENT].shape[0 if spec.vocab_first else 1]
    for name, x in hidden.items():
        vocab_first = spec.vocab_first != (name in spec.turned)
        product = _product(x, heads[name], (1, 1 if vocab_first else 0))
        if product.shape[1] > vocab:
            product = product[:, :vocab]
        of[name] = product / spec.temperature
    if route is not None:
        of = {STUDENT: of[STUDENT]} | _routed(of, spec.teachers, route)
    if spec.target is None or len(of) == 1:
        return of[STUDENT], None, {name: of[name] for name in spec.credited if name in of}
    if LIVE in of:
        first = targets.contexts(spec.target)[0]
        of[first] = (1.0 - spec.mix) * of[first] + spec.mix * of[LIVE]
    target = targets.make(of, spec.target)
    return of[STUDENT], target, {name: of[name] for name in spec.credited}


def _routed(
    of: dict[str, jax.Array], teachers: Sequence[str], route: jax.Array
) -> dict[str, jax.Array]:
    """Returns the logits of each context. Each token has those of the teacher that it goes to."""
    out = {}
    for name in dict.fromkeys(key.partition("/")[0] for key in of if key != STUDENT):
        out[name] = of[of_teacher(name, teachers[0])]
        for number, teacher in enumerate(teachers[1:], 1):
            other = of[of_teacher(name, teacher)]
            out[name] = jnp.where(route[:, None] == number, other, out[name])
    return out


def _product(x: jax.Array, y: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Returns the matrix product over one axis of each, accumulated in float32."""
    dims = (((over[0],), (over[1],)), ((), ()))
    exact = precision(x.dtype)
    return jax.lax.dot_general(x, y, dims, precision=exact, preferred_element_type=jnp.float32)


def _split(x: jax.Array, chunk_tokens: int) -> jax.Array:
    """Returns an array [R, C, ...] as [chunks, c, ...], padded at the end with zeros.

    Chunks are as equal as multiples of 32 allow, because the last one then has little padding.
    """
    length = math.prod(x.shape[:2])
    chunks = -(-length // chunk_tokens)
    size = -(-length // chunks)
    size = size if size < 32 else -(-size // 32) * 32
    flat = x.reshape(length, *x.shape[2:])
    flat = jnp.pad(flat, [(0, chunks * size - length)] + [(0, 0)] * (flat.ndim - 1))
    return flat.reshape(chunks, size, *x.shape[2:])


def _joined(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns an array [chunks, c, ...] as [R, C, ...]; `shape` is (R, C)."""
    flat = x.reshape(-1, *x.shape[2:])[: math.prod(shape)]
    return flat.reshape(*shape, *x.shape[2:])


def _row_axes() -> tuple[str, ...]:
    """Returns the axes of the mesh in use that split rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in rules.BATCH if mesh.shape.get(axis, 1) > 1)


def _on_shards(f: Callable[..., Any], axes: tuple[str, ...], out: Any) -> Callable[..., Any]:
    """Returns `f` of hidden states, heads and tokens, run by each device on its own rows.

    Heads are whole. `out` has the PartitionSpec of each result. The axes that split rows are
    manual inside; the compiler handles the vocabulary's axis.
    """
    if not axes:
        return f
    rows, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        f, in_specs=(rows, whole, rows), out_specs=out, axis_names=set(axes), check_vma=False
    )


def _sum_over_shards(head_grad: jax.Array, axes: tuple[str, ...], embed_axis: int) -> jax.Array:
    """Returns the sum over shards of the batch of a head's gradients, float32[D, V] or [V, D].

    Each shard of fsdp keeps its part of D, which is axis `embed_axis`.
    """

    def shard(x: jax.Array) -> jax.Array:
        if "fsdp" in axes:
            x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=embed_axis, tiled=True)
        rest = tuple(a for a in axes if a != "fsdp")
        return jax.lax.psum(x, rest) if rest else x

    vocab = rules.RULES["vocab"]
    if jax.sharding.get_abstract_mesh().shape.get(vocab, 1) == 1:
        return shard(head_grad)
    # The compiler handles the vocabulary's axis here, and it cannot scatter the sum of such an
    # array: it would gather the vocabulary, sum whole gradients on all and then keep the parts.
    parts = PartitionSpec(vocab) if embed_axis == 1 else PartitionSpec(None, vocab)
    return jax.shard_map(
        shard, in_specs=parts, out_specs=parts, axis_names={vocab}, check_vma=False
    )(head_grad)
