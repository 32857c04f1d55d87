"""One update of supervised finetuning: conversations as rows of one shape, cross-entropy on what
the assistant says.

The loss is the mean over the learned tokens of the whole update. So neither microbatches, chunks,
devices nor which conversations share a row change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax import config
from sdjax.learner import adamw, packing
from sdjax.learner.accumulate import GradientSums, add_gradient, over_microbatches
from sdjax.learner.batch import Packed
from sdjax.learner.logprobs import TokenOutputs, token_loss
from sdjax.learner.packing import Layout
from sdjax.learner.state import TrainState
from sdjax.models.network.transformer import head_matrix, hidden_states
from sdjax.parallel import rules
from sdjax.parallel.mesh import AS_WRITTEN, bucket

# numpy while it is packed, jax once it is placed.
_Array = Any


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Tokens of a conversation. Those from `start` (at least 1) on are learned."""

    tokens: np.ndarray  # int32[T_i]
    start: int


@dataclass(frozen=True, kw_only=True)
class SFTShape:
    """That of every update's rows: M microbatches of R rows of S tokens."""

    microbatches: int
    rows: int
    width: int
    row_tokens: int  # that conversations may fill; 0: each has a row of its own

    @classmethod
    def of(cls, conversations: Sequence[Conversation], batch: int, cfg: config.Optim) -> SFTShape:
        """Returns the shape into which any `batch` of the conversations fits."""
        lengths = np.sort([len(c.tokens) for c in conversations])
        most = batch
        if cfg.row_tokens:
            # First-fit leaves no two rows that would fit into one.
            largest = np.resize(lengths[::-1], batch).sum()
            most = min(batch, 2 * int(largest) // cfg.row_tokens + 1)
        return cls(
            microbatches=-(-most // cfg.microbatch),
            rows=cfg.microbatch,
            width=bucket(max(cfg.row_tokens, int(lengths[-1]))),
            row_tokens=cfg.row_tokens,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SFTRows:
    """Conversations end to end, then padding; what is predicted at each place, and learned."""

    packed: Packed
    target: _Array  # int32[M, R, S]: the next token
    learned: _Array  # bool[M, R, S]: whether that is learned


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SFTBatch:
    """One update."""

    rows: SFTRows
    microbatches: _Array  # int32[]: how many of the M have a conversation; the others are not run
    tokens: _Array  # float32[], of all conversations
    learned_tokens: _Array  # float32[]
    padding: _Array  # float32[]: share of padding among the tokens of the rows that are run


def pack(conversations: Sequence[Conversation], shape: SFTShape, pad_id: int) -> SFTBatch:
    """Returns the host arrays of one update."""
    lengths = [len(c.tokens) for c in conversations]
    if shape.row_tokens:
        sizes = np.array(lengths)[:, None]
        rows = packing.assign(sizes, row_tokens=shape.row_tokens, multiple=shape.rows)
    else:
        rows = [[i] for i in range(len(lengths))]
    layout = Layout(
        rows=rows, shape=(shape.microbatches, shape.rows), several=bool(shape.row_tokens)
    )

    def array(values: Sequence[np.ndarray], fill: int, dtype: type) -> np.ndarray:
        return layout.array(values, fill, dtype, width=shape.width)

    # A place predicts the token after it, the last of a conversation none.
    learned = [(np.arange(n) >= c.start - 1) for n, c in zip(lengths, conversations, strict=True)]
    for of in learned:
        of[-1] = False
    numbers = [number for number, _ in layout.places(lengths)]
    segments = [np.full(n, number) for n, number in zip(lengths, numbers, strict=True)]
    packed = Packed(
        tokens=array([c.tokens for c in conversations], pad_id, np.int32),
        segment_ids=array(segments, 0, np.int32) if layout.several else None,
        positions=array([np.arange(n) for n in lengths], 0, np.int32),
    )
    filled = -(-len(rows) // shape.rows)
    return SFTBatch(
        rows=SFTRows(
            packed=packed,
            target=array([np.roll(c.tokens, -1) for c in conversations], pad_id, np.int32),
            learned=array(learned, False, np.bool_),
        ),
        microbatches=np.int32(filled),
        tokens=np.float32(sum(lengths)),
        learned_tokens=np.float32(sum(int(of.sum()) for of in learned)),
        padding=np.float32(1.0 - sum(lengths) / (filled * shape.rows * shape.width)),
    )


def make_step(
    graphdef: nnx.GraphDef, cfg: config.SFT, mesh: Mesh, state_shardings: TrainState
) -> Callable[[TrainState, SFTBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted update. It donates the state and skips itself on non-finite gradients."""

    def train_step(state: TrainState, batch: SFTBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        def one(micro: SFTRows, grads: nnx.State) -> tuple[nnx.State, dict[str, jax.Array]]:
            def loss(params: nnx.State, sums: GradientSums) -> tuple[jax.Array, Any]:
                return microbatch_loss(params, micro, batch.learned_tokens, graphdef, cfg, sums)

            into = cfg.model.remat == "full"
            return add_gradient(grads, state.params, loss, graphdef, into=into)

        grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
        grads = jax.lax.with_sharding_constraint(grads, state_shardings.params)
        grads, means = over_microbatches(one, grads, batch.rows, batch.microbatches)
        lr = adamw.learning_rate(state.step, cfg.optim)
        params, opt_state, norm = adamw.apply(state.params, state.opt_state, grads, lr, cfg.optim)
        metrics = {f"sft/{name}": jnp.sum(x) for name, x in means.items()} | {
            "sft/tokens": batch.tokens,
            "sft/learned_tokens": batch.learned_tokens,
            "optim/grad_norm": norm,
            "optim/skipped": 1.0 - jnp.isfinite(norm).astype(jnp.float32),
            "optim/lr": lr,
            "update/padding": batch.padding,
        }
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, None),
        out_shardings=(state_shardings, rules.replicated(mesh)),
        compiler_options=AS_WRITTEN,
    )


def microbatch_loss(
    params: nnx.State,
    micro: SFTRows,
    learned_tokens: jax.Array,
    graphdef: nnx.GraphDef,
    cfg: config.SFT,
    gradients: GradientSums,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a microbatch's share of the mean loss (nats a token) and of what is reported.

    `gradients` is what its gradients are added to.
    """
    model = nnx.merge(graphdef, params)
    rows = micro.packed
    hidden = hidden_states(model, rows.tokens, rows.positions, rows.segment_ids, gradients.layers)
    share = jnp.where(micro.learned, 1.0 / jnp.maximum(learned_tokens, 1.0), 0.0)
    total, outputs = token_loss(
        _cross_entropy,
        hidden,
        head_matrix(model),
        None,
        None,
        micro.target,
        share,
        cfg=config.Loss(chunk_tokens=cfg.chunk_tokens),
        temperature=1.0,
        mask=micro.learned,
        vocab_first=model.cfg.tie_embeddings,
        head_sums=gradients.head,
    )
    accuracy = jnp.sum(outputs.top1_agree * share)
    return total, {"loss": jax.lax.stop_gradient(total), "token_accuracy": accuracy}


def _cross_entropy(outputs: TokenOutputs, share: jax.Array) -> jax.Array:
    return -share * outputs.student_logprob
