"""Groups and reprompts as arrays: what one update reads.

Rows of student and teacher come in pairs: row r of both holds the same completions, so whatever
splits rows over devices keeps a completion's two contexts together, and gathering the positions
that predict it stays inside a row. No completion is cut: what is summed over one is in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sdjax.config import Policy
from sdjax.learner import packing
from sdjax.learner.packing import Layout
from sdjax.objectives.policy_gradient import advantages, overlong_shaped
from sdjax.records import Group, TeacherPrompt

# numpy while it is packed, jax once it is placed.
_Array = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows of tokens: contexts, each before its completion, then padding.

    Each such pair is a segment, numbered from 1 in its row; padding is segment 0. Positions count
    from 0 in each segment. No segments: every row is one sequence, perhaps padded on the right.
    """

    tokens: _Array  # int32[M, R, S]
    segment_ids: _Array | None  # int32[M, R, S]
    positions: _Array  # int32[M, R, S]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rows:
    """M microbatches of R rows, C completion tokens a row, those of one completion in order.

    `student_index` and `teacher_index` say where in its row a completion token is predicted: one
    before the token itself. `sample` is the token's completion, or -1 where there is no token.
    """

    student: Packed
    teacher: Packed | None
    token: _Array  # int32[M, R, C]
    student_index: _Array  # int32[M, R, C]
    teacher_index: _Array | None  # int32[M, R, C]
    sample: _Array  # int32[M, R, C]
    index: _Array  # int32[M, R, C], position in the completion
    sampler_logprobs: _Array  # float32[M, R, C]
    old_logprobs: _Array | None  # float32[M, R, C]; None: those of the params being updated
    epistemic: _Array  # bool[M, R, C]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is known of each of the update's B completions."""

    advantage: _Array  # float32[B]
    distilled: _Array  # bool[B]
    learned: _Array  # bool[B], has a row
    pass_rate: _Array  # float32[B], share of correct completions in the group
    length: _Array  # int32[B]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """One update."""

    rows: Rows
    samples: Samples
    microbatches: _Array  # int32[]: how many of the M have a completion; the others are not run
    padding: _Array  # float32[]: share of padding among the tokens of the rows that are run


def pack(
    groups: Sequence[Group],
    reprompts: Sequence[Sequence[TeacherPrompt]] | None,
    *,
    microbatch: int,
    distillation: float,
    policy: Policy,
    longest: int,
    pad_id: int,
    epistemic: Sequence[np.ndarray],
    row_tokens: int = 0,
) -> Batch:
    """Returns the host arrays of one update, each completion in a row of its own or,
    with `row_tokens`, of several (optim.row_tokens).

    Only completions that add to the loss get a row: those that are distilled, where `distillation`
    is over 0, and those with an advantage, where it is under 1. The others would add exactly 0;
    they count in the denominators all the same. `reprompts` is None where no teacher runs;
    `longest` is how many tokens a completion may have; `epistemic` holds bool[T_i] for each.
    """
    completions = [c for g in groups for c in g.completions]
    flat = [r for of_group in reprompts for r in of_group] if reprompts is not None else None
    samples = _samples(groups, flat, distillation, policy, longest)
    learned = np.flatnonzero(samples.learned).tolist()
    tokens = [completions[i].tokens for i in learned]
    of_each = [g.prompt for g in groups for _ in g.completions]
    prompts = [of_each[i] for i in learned]
    taught = None if flat is None else [flat[i].tokens for i in learned]
    sizes = _sizes(tokens, [prompts] if taught is None else [prompts, taught])
    layout = packing.layout(
        sizes,
        completions=len(completions),
        microbatch=microbatch,
        row_tokens=row_tokens,
    )
    student, student_index = _packed(prompts, tokens, layout, pad_id)
    teacher, teacher_index = None, None
    if taught is not None:
        teacher, teacher_index = _packed(taught, tokens, layout, pad_id)
    sample = [np.full(len(t), i) for i, t in zip(learned, tokens, strict=True)]
    rows = Rows(
        student=student,
        teacher=teacher,
        token=layout.array(tokens, pad_id, np.int32),
        student_index=student_index,
        teacher_index=teacher_index,
        sample=layout.array(sample, -1, np.int32),
        index=layout.array([np.arange(len(t)) for t in tokens], 0, np.int32),
        sampler_logprobs=layout.array([completions[i].logprobs for i in learned], 0.0, np.float32),
        old_logprobs=None,
        epistemic=layout.array([epistemic[i] for i in learned], False, np.bool_),
    )
    filled = -(-len(layout.rows) // microbatch)
    widths = [x.tokens.shape[-1] for x in (student, teacher) if x is not None]
    computed = max(filled * microbatch * sum(widths), 1)
    return Batch(
        rows=rows,
        samples=samples,
        microbatches=np.int32(filled),
        padding=np.float32(1.0 - sizes[:, 1:].sum() / computed if filled else 0.0),
    )


def places(batch: Batch) -> np.ndarray:
    """Returns int64[B]: where a completion's first token stands in an array [M, R, C], flat.

    -1 for a completion without a row. `batch` is the host's: of one that is split over hosts none
    can read all.
    """
    out = np.full(len(batch.samples.length), -1, np.int64)
    first = np.flatnonzero((batch.rows.index == 0) & (batch.rows.sample >= 0))
    out[batch.rows.sample.reshape(-1)[first]] = first
    return out


def rows_with(batch: Batch, at: Sequence[int], shards: int, number: int) -> Rows:
    """Returns rows of a host batch as blocks of one row a shard, `number` of them at least.

    `at` has the flat places of tokens (see places), at least one and at most `number`. The first's
    row fills up, so that the shape depends on the batch's alone.
    """
    blocks = -(-number // shards)
    rows = np.array(at) // batch.rows.token.shape[-1]
    rows = np.concatenate([rows, np.repeat(rows[:1], blocks * shards - len(rows))])

    def pick(x: np.ndarray) -> np.ndarray:
        width = x.shape[-1]
        return x.reshape(-1, width)[rows].reshape(blocks, shards, width)

    return jax.tree.map(pick, batch.rows)


def _samples(
    groups: Sequence[Group],
    reprompts: Sequence[TeacherPrompt] | None,
    distillation: float,
    policy: Policy,
    longest: int,
) -> Samples:
    grades = [x for g in groups for x in g.grades]
    group = np.array([i for i, g in enumerate(groups) for _ in g.grades], np.int32)
    length = np.array([len(c.tokens) for g in groups for c in g.completions], np.int32)
    rewards = overlong_shaped(np.array([x.reward for x in grades]), length, longest, policy)
    advantage = advantages(rewards, group, policy)
    distilled = np.array([r.distilled for r in reprompts] if reprompts else [False] * len(grades))
    correct = [np.mean([x.correct for x in g.grades]) for g in groups for _ in g.grades]
    return Samples(
        advantage=advantage,
        distilled=distilled,
        # NaN is a signal too: it must reach the gradient, where it is seen.
        learned=(distilled & (distillation > 0)) | ((advantage != 0) & (distillation < 1)),
        pass_rate=np.array(correct, np.float32),
        length=length,
    )


def _sizes(completions: Sequence[np.ndarray], contexts: Sequence[Sequence]) -> np.ndarray:
    """Returns int64[N, 1 + K]: tokens of each completion alone, and with each of its K contexts."""
    alone = np.array([len(t) for t in completions], np.int64)
    with_each = [alone + np.array([len(p) for p in of], np.int64) for of in contexts]
    return np.stack([alone, *with_each], axis=1)


def _packed(
    contexts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    layout: Layout,
    pad_id: int,
) -> tuple[Packed, np.ndarray]:
    """Returns rows of contexts, each before its completion, and where this is predicted, [M, R, C].

    A context is one token long at least: the completion's first is predicted from its last.
    """
    whole = [np.concatenate([p, t]) for p, t in zip(contexts, completions, strict=True)]
    places = layout.places([len(w) for w in whole])
    segments = [np.full(len(w), number) for w, (number, _) in zip(whole, places, strict=True)]
    index = [
        before + np.arange(len(p) - 1, len(w) - 1)
        for p, w, (_, before) in zip(contexts, whole, places, strict=True)
    ]
    packed = Packed(
        tokens=layout.array(whole, pad_id, np.int32),
        segment_ids=layout.array(segments, 0, np.int32) if layout.several else None,
        positions=layout.array([np.arange(len(w)) for w in whole], 0, np.int32),
    )
    return packed, layout.array(index, 0, np.int32)
