"""The chunked head: hidden states in, what both models say of each token out.

Logits exist in float32, for one chunk of positions at a time; nothing of shape [R, C, V] ever
does. Two ways to the same gradient:

    token_outputs   any function of its outputs can be differentiated; the backward pass makes
                    each chunk's logits a second time (12 N V D operations)
    token_loss      for a loss that is a sum over tokens; its gradient is taken in the forward
                    pass, while a chunk's logits are there (8 N V D operations)

Rows are split over devices by the batch rule and stay where they are: every device scans its own
tokens, and the head's gradient is summed over devices once, at the end, each of fsdp keeping its
part. The vocabulary may be split by its own rule; it is reduced over, never gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sdjax.config import Loss
from sdjax.learner import split_rows
from sdjax.learner.chunks import chunked, joined
from sdjax.models.network.attention import precision
from sdjax.objectives import divergences, reductions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenOutputs:
    """What both models say of every token, float32[R, C]; 0 where there is none.

    Only the divergence and the student's log-probability carry gradients. Without a teacher its
    fields are 0, and top1_agree says whether the student's likeliest token is the token itself.
    """

    divergence: jax.Array  # as cfg.divergence defines it, before weights
    student_logprob: jax.Array  # of the token
    teacher_logprob: jax.Array
    student_entropy: jax.Array  # nats, over the whole vocabulary
    teacher_entropy: jax.Array
    top1_agree: jax.Array  # 1.0 where both have the same likeliest token
    reverse_kl: jax.Array  # KL(student || teacher), nats, over the whole vocabulary


TokenLoss = Callable[[TokenOutputs, Any], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Student:
    """What gradients go to; or those gradients, where there is none for a head with sums."""

    hidden: jax.Array
    head: jax.Array
    sums: jax.Array | None  # like the head, float32: what its gradient is added to


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Arrays [R, C, ...], beside the student's hidden states; or a chunk of them, [c, ...]."""

    teacher_hidden: jax.Array | None
    live_hidden: jax.Array | None
    token: jax.Array
    mask: jax.Array
    extras: Any = None  # for the loss
    cotangent: Any = None  # of divergence and student_logprob


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Heads:
    """Arrays like the student's head, beside it."""

    teacher: jax.Array | None
    live: jax.Array | None


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """What is fixed when the head is traced."""

    cfg: Loss
    temperature: float
    mix: float
    vocab_first: bool
    loss: TokenLoss | None = None
    of_logprob: bool = True

    @property
    def embed_axis(self) -> int:
        """Which axis of a head is that of hidden states."""
        return 1 if self.vocab_first else 0


def token_outputs(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array | None,
    teacher_head: jax.Array | None,
    token: jax.Array,
    *,
    cfg: Loss,
    temperature: float,
    mask: jax.Array,
    live_hidden: jax.Array | None = None,
    live_head: jax.Array | None = None,
    vocab_first: bool = False,
    mix: float = 0.0,
    head_sums: jax.Array | None = None,
) -> TokenOutputs:
    """Returns what student and teacher say of `token` int32[R, C] where `mask` bool[R, C].

    Hidden states are [R, C, D], at the positions that predict the tokens; heads are [D, V], or
    with `vocab_first` [V, D], as an embedding that is the head too: turned, it would be copied.
    Gradients go to the student's two only. Heads are cast to the hidden states' dtype and
    products accumulate in float32; the head's gradient is summed in float32 and comes back in the
    head's own dtype, so pass the float32 parameter. `live_hidden` and `live_head` are the
    student's on the teacher's context: with the share `mix` of the teacher's logits they make the
    trust-region teacher (arXiv:2601.20802 section 3.3).

    With `head_sums`, float32 like the head, the sum so far of its gradients, the head's is added to
    it: what is given as the gradient by `head_sums` is the new sum, and none goes to the head.
    """
    student = _Student(hidden=student_hidden, head=student_head, sums=head_sums)
    tokens = _Tokens(teacher_hidden=teacher_hidden, live_hidden=live_hidden, token=token, mask=mask)
    heads = _Heads(teacher=teacher_head, live=live_head)
    spec = _Spec(cfg=cfg, temperature=temperature, mix=mix, vocab_first=vocab_first)
    return _token_outputs(student, tokens, heads, spec)


def token_loss(
    loss: TokenLoss,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array | None,
    teacher_head: jax.Array | None,
    token: jax.Array,
    extras: Any,
    *,
    cfg: Loss,
    temperature: float,
    mask: jax.Array,
    live_hidden: jax.Array | None = None,
    live_head: jax.Array | None = None,
    vocab_first: bool = False,
    mix: float = 0.0,
    of_logprob: bool = True,
    head_sums: jax.Array | None = None,
) -> tuple[jax.Array, TokenOutputs]:
    """Returns the sum of `loss(outputs, extras)` over tokens, and the outputs without gradient.

    `loss` maps any slice [c] of the outputs and of `extras`, a pytree of arrays [R, C, ...], to
    float32[c]: what each token adds to the loss. It looks at one token at a time and closes over
    no arrays; what it weighs tokens by is in `extras`, which get no gradient. `of_logprob` False
    says that it has none by the student's log-probability either, as pure distillation: its
    gradient is then one pass over the logits, not two. With `head_sums` the sum must be what is
    differentiated, and no function of it, as 3 times it: the head's gradient is added before a
    factor could reach it, so hidden states then get NaN. Everything else is as in token_outputs.
    """
    student = _Student(hidden=student_hidden, head=student_head, sums=head_sums)
    tokens = _Tokens(
        teacher_hidden=teacher_hidden,
        live_hidden=live_hidden,
        token=token,
        mask=mask,
        extras=extras,
    )
    heads = _Heads(teacher=teacher_head, live=live_head)
    spec = _Spec(
        cfg=cfg,
        temperature=temperature,
        mix=mix,
        vocab_first=vocab_first,
        loss=loss,
        of_logprob=of_logprob,
    )
    total, outputs = _token_loss(student, tokens, heads, spec)
    return total, jax.lax.stop_gradient(outputs)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_outputs(student: _Student, tokens: _Tokens, heads: _Heads, spec: _Spec) -> TokenOutputs:
    return _forward(student, tokens, heads, spec)[1]


def _token_outputs_forward(
    student: _Student, tokens: _Tokens, heads: _Heads, spec: _Spec
) -> tuple[TokenOutputs, Any]:
    return _token_outputs(student, tokens, heads, spec), (student, tokens, heads)


def _token_outputs_backward(
    spec: _Spec, saved: Any, g: TokenOutputs
) -> tuple[_Student, None, None]:
    student, tokens, heads = saved
    tokens = replace(tokens, cotangent=(g.divergence, g.student_logprob))
    grads = _with_gradient(student, tokens, heads, spec)[2]
    if grads.sums is None:
        grads = replace(grads, head=grads.head.astype(student.head.dtype))
    return grads, None, None


_token_outputs.defvjp(_token_outputs_forward, _token_outputs_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_loss(
    student: _Student, tokens: _Tokens, heads: _Heads, spec: _Spec
) -> tuple[jax.Array, TokenOutputs]:
    return _forward(student, tokens, heads, spec)


def _token_loss_forward(
    student: _Student, tokens: _Tokens, heads: _Heads, spec: _Spec
) -> tuple[tuple[jax.Array, TokenOutputs], Any]:
    total, outputs, grads = _with_gradient(student, tokens, heads, spec)
    return (total, outputs), (grads, jnp.zeros((0,), student.head.dtype))


def _token_loss_backward(
    spec: _Spec, saved: Any, g: tuple[jax.Array, TokenOutputs]
) -> tuple[_Student, None, None]:
    del spec
    grads, like_head = saved
    if grads.sums is None:
        grads = replace(grads, head=(g[0] * grads.head).astype(like_head.dtype))
        scale = g[0]
    else:  # The head's went into the sums as it is, so a factor would count for one of the two.
        scale = jnp.where(g[0] == 1, 1.0, jnp.nan)
    grads = replace(grads, hidden=(scale * grads.hidden).astype(grads.hidden.dtype))
    return grads, None, None


_token_loss.defvjp(_token_loss_forward, _token_loss_backward)


def _forward(
    student: _Student, tokens: _Tokens, heads: _Heads, spec: _Spec
) -> tuple[jax.Array, TokenOutputs]:
    """Returns the loss and the outputs."""
    rows, whole = PartitionSpec(split_rows.axes()), PartitionSpec()

    def shard(
        hidden: jax.Array, head: jax.Array, tokens: _Tokens, heads: _Heads
    ) -> tuple[jax.Array, TokenOutputs]:
        def one(total: jax.Array, chunk: Any) -> tuple[jax.Array, TokenOutputs]:
            outputs, loss, _ = _chunk(chunk[0], chunk[1], head, heads, spec)
            return total + loss, outputs

        hidden, tokens = _clean(hidden, tokens)
        chunks = chunked((hidden, tokens), spec.cfg.chunk_tokens)
        total, outputs = jax.lax.scan(one, jnp.zeros(()), chunks)
        return split_rows.psum(total), joined(outputs, tokens.token.shape)

    out = (whole, rows)
    return split_rows.on_shards(shard, student.hidden, student.head, tokens, heads, out)


def _with_gradient(
    student: _Student, tokens: _Tokens, heads: _Heads, spec: _Spec
) -> tuple[jax.Array, TokenOutputs, _Student]:
    """Returns the loss, the outputs, and the gradients: the head's, float32, or the new sums."""
    sums, axes = student.sums, split_rows.axes()
    rows, whole = PartitionSpec(axes), PartitionSpec()

    def shard(
        hidden: jax.Array, head: jax.Array, tokens: _Tokens, heads: _Heads
    ) -> tuple[jax.Array, TokenOutputs, jax.Array, jax.Array]:
        def one(carry: Any, chunk: Any) -> tuple[Any, Any]:
            total, head_grad = carry
            outputs, loss, pull = _chunk(chunk[0], chunk[1], head, heads, spec)
            # In the compute dtype, or the two products below would not run at its speed.
            logits_grad = (pull() / spec.temperature).astype(head.dtype)
            hidden_grad = _product(logits_grad, head, (1, 1 - spec.embed_axis)).astype(head.dtype)
            x, y = (logits_grad, chunk[0]) if spec.vocab_first else (chunk[0], logits_grad)
            head_grad = head_grad + _product(x, y, (0, 0))
            return (total + loss, head_grad), (outputs, hidden_grad)

        hidden, tokens = _clean(hidden, tokens)
        chunks = chunked((hidden, tokens), spec.cfg.chunk_tokens)
        # Of several shards each has its own gradient here; the sums so far must count once.
        start = jnp.zeros(head.shape, jnp.float32) if sums is None or axes else sums
        (total, head_grad), ys = jax.lax.scan(one, (jnp.zeros(()), start), chunks)
        outputs, hidden_grad = joined(ys, tokens.token.shape)
        head_grad = split_rows.psum_head(head_grad, spec.embed_axis)
        return split_rows.psum(total), outputs, hidden_grad, head_grad

    out = (whole, rows, rows, split_rows.head_spec(spec.embed_axis))
    total, outputs, hidden_grad, head_grad = split_rows.on_shards(
        shard, student.hidden, student.head, tokens, heads, out
    )
    if sums is None:
        return total, outputs, _Student(hidden=hidden_grad, head=head_grad, sums=None)
    new = sums + head_grad if axes else head_grad
    grads = _Student(hidden=hidden_grad, head=None, sums=new)  # type: ignore[arg-type]
    return total, outputs, grads


def _chunk(
    hidden: jax.Array, tokens: _Tokens, head: jax.Array, heads: _Heads, spec: _Spec
) -> tuple[TokenOutputs, jax.Array, Callable[[], jax.Array]]:
    """Returns a chunk's outputs [c], its loss, and what gives the gradient by its logits.

    Those are the logits after temperature, float32[c, V].
    """
    student = _logits(hidden, head, spec)
    teacher = _teacher_logits(tokens, heads, spec)

    def learned(student: jax.Array) -> tuple[jax.Array, jax.Array]:
        logprob = reductions.log_prob(student, tokens.token)
        if not spec.of_logprob:
            logprob = jax.lax.stop_gradient(logprob)
        if teacher is None:
            return jnp.zeros_like(logprob), logprob
        f = divergences.get(spec.cfg.divergence)
        return f(student, teacher, tokens.token, spec.cfg), logprob

    def masked(x: jax.Array) -> jax.Array:
        return jnp.where(tokens.mask, x, 0.0)

    pair, pull = jax.vjp(learned, student)
    outputs = jax.tree.map(masked, _described(student, teacher, tokens.token, *pair))
    if spec.loss is None:
        return outputs, jnp.zeros(()), lambda: pull(jax.tree.map(masked, tokens.cotangent))[0]
    f = spec.loss

    def of_loss(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        varied = replace(outputs, divergence=pair[0], student_logprob=pair[1])
        return jnp.sum(masked(f(varied, tokens.extras)))

    loss, pull_loss = jax.vjp(of_loss, (outputs.divergence, outputs.student_logprob))
    return outputs, loss, lambda: pull(jax.tree.map(masked, pull_loss(jnp.ones(()))[0]))[0]


def _described(
    student: jax.Array,
    teacher: jax.Array | None,
    token: jax.Array,
    divergence: jax.Array,
    logprob: jax.Array,
) -> TokenOutputs:
    """Returns the outputs of a chunk, from its logits and the two that are learned from."""
    zero = jnp.zeros_like(logprob)
    if teacher is None:
        return TokenOutputs(
            divergence=divergence,
            student_logprob=logprob,
            teacher_logprob=zero,
            student_entropy=reductions.entropy(student),
            teacher_entropy=zero,
            top1_agree=reductions.is_top(student, token).astype(jnp.float32),
            reverse_kl=zero,
        )
    pair = reductions.compare(student, teacher, token)
    return TokenOutputs(
        divergence=divergence,
        student_logprob=logprob,
        teacher_logprob=pair.q_log_prob,
        student_entropy=pair.p_entropy,
        teacher_entropy=pair.q_entropy,
        top1_agree=reductions.same_top(student, teacher).astype(jnp.float32),
        reverse_kl=pair.kl,
    )


def logits(
    hidden: jax.Array, head: jax.Array, *, vocab_first: bool, temperature: float
) -> jax.Array:
    """Returns float32[c, V] of hidden states [c, D], temperature applied."""
    return _product(hidden, head, (1, 1 if vocab_first else 0)) / temperature


def _logits(hidden: jax.Array, head: jax.Array, spec: _Spec) -> jax.Array:
    return logits(hidden, head, vocab_first=spec.vocab_first, temperature=spec.temperature)


def _teacher_logits(tokens: _Tokens, heads: _Heads, spec: _Spec) -> jax.Array | None:
    """Returns float32[c, V]: those of the teacher, or of its mixture with the student."""
    if tokens.teacher_hidden is None or heads.teacher is None:
        return None
    teacher = _logits(tokens.teacher_hidden, heads.teacher, spec)
    if tokens.live_hidden is None or heads.live is None:
        return teacher
    live = _logits(tokens.live_hidden, heads.live, spec)
    return mixed(teacher, live, spec.mix)


def mixed(teacher: jax.Array, live: jax.Array, mix: float) -> jax.Array:
    """Returns the logits of the trust-region teacher, with the share `mix` of the live ones."""
    return (1.0 - mix) * teacher + mix * live


def _product(x: jax.Array, y: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Returns the matrix product over one axis of each, accumulated in float32."""
    dims = (((over[0],), (over[1],)), ((), ()))
    exact = precision(x.dtype)
    return jax.lax.dot_general(x, y, dims, precision=exact, preferred_element_type=jnp.float32)


def _clean(hidden: jax.Array, tokens: _Tokens) -> tuple[jax.Array, _Tokens]:
    """Returns both with zeros at masked positions: whatever stood there, it can make no NaN."""

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where(tokens.mask[..., None], x, 0).astype(hidden.dtype)

    contexts = (tokens.teacher_hidden, tokens.live_hidden)
    teacher_hidden, live_hidden = jax.tree.map(clean, contexts)
    return clean(hidden), replace(tokens, teacher_hidden=teacher_hidden, live_hidden=live_hidden)
