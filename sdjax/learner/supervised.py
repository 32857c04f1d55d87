"""Packs conversations into rows of one shape, and computes the loss of the assistant's turns.

The loss is the mean over the learned tokens of the whole update. So microbatches, chunks, devices
and the conversations that share a row do not change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax import config
from sdjax.learner.batch import Layout, Packed, assign
from sdjax.learner.chunked_head import (
    Context,
    Contexts,
    HeadSpec,
    TokenOutputs,
    Tokens,
    token_loss,
)
from sdjax.learner.objective import GradientSums
from sdjax.learner.state import TrainState
from sdjax.learner.update import make_update
from sdjax.models.network.transformer import head_matrix, hidden_states
from sdjax.parallel.rules import bucket

# numpy on the host, jax on the devices.
_Array = Any


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The tokens of a conversation. Tokens from index `start` (at least 1) on are learned."""

    tokens: np.ndarray  # int32[T_i]
    start: int


@dataclass(frozen=True, kw_only=True)
class SFTShape:
    """The shape of the rows of every update: M microbatches of R rows of S tokens."""

    microbatches: int
    rows: int
    width: int
    row_tokens: int  # the most that conversations fill together; 0: one each

    @classmethod
    def of(cls, conversations: Sequence[Conversation], batch: int, cfg: config.Optim) -> SFTShape:
        """Returns the shape into which any `batch` of the conversations in turn fits.

        Each epoch has every conversation once. A batch may cross the end of an epoch, and then it
        may hold the longest ones twice.
        """
        lengths = np.sort([len(c.tokens) for c in conversations])
        most = batch
        if cfg.row_tokens:
            # First-fit leaves no two rows that would fit into one.
            often = max(batch - 2, 0) // len(lengths) + 2  # epochs that a batch may touch
            largest = np.repeat(lengths[::-1], often)[:batch].sum()
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
    """Conversations end to end, then padding, with the target at each position."""

    packed: Packed
    target: _Array  # int32[M, R, S]: the next token
    learned: _Array  # bool[M, R, S]: whether the target is learned


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SFTBatch:
    """The arrays of one update."""

    rows: SFTRows
    microbatches: _Array  # int32[]: how many of the M have a conversation; the others do not run
    tokens: _Array  # float32[], of all conversations
    learned_tokens: _Array  # float32[]
    padding: _Array  # float32[]: share of padding among the tokens of the rows that run


def pack(conversations: Sequence[Conversation], shape: SFTShape, pad_id: int) -> SFTBatch:
    """Returns the host arrays of one update."""
    lengths = [len(c.tokens) for c in conversations]
    if shape.row_tokens:
        sizes = np.array(lengths)[:, None]
        rows = assign(sizes, row_tokens=shape.row_tokens, multiple=shape.rows)
    else:
        rows = [[i] for i in range(len(lengths))]
    layout = Layout(
        rows=rows, shape=(shape.microbatches, shape.rows), several=bool(shape.row_tokens)
    )

    def array(values: Sequence[np.ndarray], fill: int, dtype: type) -> np.ndarray:
        return layout.array(values, fill, dtype, width=shape.width)

    # A position predicts the token after it; the last position of a conversation predicts none.
    learned = [(np.arange(n) >= c.start - 1) for n, c in zip(lengths, conversations, strict=True)]
    for positions in learned:
        positions[-1] = False
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
        learned_tokens=np.float32(sum(int(positions.sum()) for positions in learned)),
        padding=np.float32(1.0 - sum(lengths) / (filled * shape.rows * shape.width)),
    )


def make_train_step(
    graphdef: nnx.GraphDef, cfg: config.SFT, state_shardings: TrainState
) -> Callable[[TrainState, SFTBatch], tuple[TrainState, dict[str, jax.Array], None]]:
    """Returns the jitted update of supervised finetuning; see update.make_update.

    It does not count the step: update.make_after_step does.
    """
    loss = partial(microbatch_loss, graphdef, cfg.chunk_tokens)
    return make_update(graphdef, loss, update_metrics, cfg.optim, state_shardings, cfg.model.remat)


def microbatch_loss(
    graphdef: nnx.GraphDef,
    chunk_tokens: int,
    params: nnx.State,
    gradients: GradientSums,
    state: TrainState,
    micro: SFTBatch,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], None]]:
    """Returns a microbatch's share of the mean loss (nats per token) and of the metrics.

    Args:
        graphdef: The model's structure.
        chunk_tokens: Positions whose logits exist at one time.
        params: The parameters, by which the loss is differentiated.
        gradients: The sums that its gradients are added to.
        state: Unused: all parameters are trained, and no teacher runs.
        micro: A batch whose rows are those of one microbatch, [R, ...].
    """
    del state
    model, rows, packed = nnx.merge(graphdef, params), micro.rows, micro.rows.packed
    hidden = hidden_states(
        model, packed.tokens, packed.positions, packed.segment_ids, gradients.layers
    )
    share = jnp.where(rows.learned, 1.0 / jnp.maximum(micro.learned_tokens, 1.0), 0.0)
    total, outputs = token_loss(
        _cross_entropy,
        Contexts(student=Context(hidden=hidden, head=head_matrix(model)), teachers={}),
        Tokens(token=rows.target, mask=rows.learned, known=share),
        HeadSpec(
            loss=config.Loss(chunk_tokens=chunk_tokens),
            temperature=1.0,
            target=None,
            vocab_first=model.cfg.tie_embeddings,
        ),
        gradients.head,
    )
    accuracy = jnp.sum(outputs.top1_agree * share)
    return total, ({"loss": jax.lax.stop_gradient(total), "token_accuracy": accuracy}, None)


def _cross_entropy(outputs: TokenOutputs, share: jax.Array) -> jax.Array:
    return -share * outputs.student_logprob


def update_metrics(
    means: dict[str, jax.Array], batch: SFTBatch
) -> tuple[jax.Array, None, dict[str, jax.Array]]:
    """Returns the loss of an update, no divisor, and its metrics, from its microbatches' shares.

    Each share is [M].
    """
    metrics = {f"sft/{name}": jnp.sum(x) for name, x in means.items()}
    counts = {"sft/tokens": batch.tokens, "sft/learned_tokens": batch.learned_tokens}
    return metrics["sft/loss"], None, metrics | counts
