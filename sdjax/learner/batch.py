"""Packs groups and reprompts into the arrays that one update reads.

Row r of the student and row r of each teacher's context hold the same completions. So a split of
rows over devices keeps all contexts of a completion together, and the positions that predict a
completion are gathered inside its row. No completion is cut: a sum over its tokens stays in one
row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sdjax.config import Loss, Optim, Policy, Teacher
from sdjax.config.sections.target import STUDENT
from sdjax.errors import UserError
from sdjax.objectives import credits
from sdjax.objectives.policy_gradient import advantages, overlong_shaped
from sdjax.parallel.rules import bucket
from sdjax.records import Group, TeacherPrompt

# numpy on the host, jax on the devices.
_Array = Any

Reprompts = Mapping[str, Sequence[Sequence[TeacherPrompt]]]
"""What the teacher reads in each context, by its name: for each group one per completion."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows of tokens: each context before its completion, then padding.

    A context and its completion are a segment, numbered from 1 in the row; padding is segment 0.
    Positions count from 0 in each segment. `segment_ids` None: every row is one sequence, perhaps
    padded on the right.
    """

    tokens: _Array  # int32[M, R, S]
    segment_ids: _Array | None  # int32[M, R, S]
    positions: _Array  # int32[M, R, S]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ContextRows:
    """Rows whose completions follow one context, and where the row predicts each of their tokens.

    The position that predicts a token is one before the token itself.
    """

    packed: Packed
    index: _Array  # int32[M, R, C]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rows:
    """M microbatches of R rows with C completion tokens each; a completion's stand in order.

    `sample` is the token's completion, or -1 where there is no token.
    """

    student: ContextRows
    contexts: dict[str, ContextRows]  # what the teacher reads, by name; {} where no teacher runs
    token: _Array  # int32[M, R, C]
    sample: _Array  # int32[M, R, C]
    index: _Array  # int32[M, R, C], position in the completion
    sampler_logprobs: _Array  # float32[M, R, C]
    old_logprobs: _Array | None  # float32[M, R, C]; None: those of the params being updated
    epistemic: _Array  # bool[M, R, C]
    route: _Array | None = None  # int32[M, R, C], which model teaches; None: there is only one


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the learner knows of each of the update's B completions."""

    advantage: _Array  # float32[B]
    distilled: _Array  # bool[B], the teacher knows more of it than the student
    learned: _Array  # bool[B], has a row
    pass_rate: _Array  # float32[B], share of correct completions in the group
    correct: _Array  # bool[B]
    unlikely_below: _Array  # float32[B], the log-probability under which a token is unlikely
    length: _Array  # int32[B]
    route: _Array | None = None  # int32[B], the number of its teacher among Teacher.models


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """The arrays of one update."""

    rows: Rows
    samples: Samples
    microbatches: _Array  # int32[]: how many of the M have a completion; the others do not run
    padding: _Array  # float32[]: share of padding among the tokens of the rows that run


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which completions stand in each row, in order. The last rows, up to M R, may be empty."""

    rows: Sequence[Sequence[int]]
    shape: tuple[int, int]  # M microbatches of R rows
    several: bool  # whether a row may hold more than one completion

    def array(
        self, values: Sequence[np.ndarray], fill: float, dtype: type, *, width: int = 0
    ) -> np.ndarray:
        """Returns [M, R, n]: in each row the values of its completions end to end, then `fill`.

        `values` has an array for each completion. n is `width`, or with 0 the bucket of the
        longest row.
        """
        whole = [np.concatenate([values[i] for i in row]) for row in self.rows]
        number, longest = self.shape[0] * self.shape[1], max([1, *map(len, whole)])
        assert len(whole) <= number, (len(whole), self.shape)
        out: np.ndarray = np.full((number, width or bucket(longest)), fill, dtype)
        for row, value in zip(out[: len(whole)], whole, strict=True):
            row[: len(value)] = value
        return out.reshape(*self.shape, -1)

    def places(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Returns each completion's number in its row, from 1, and how many tokens precede it.

        `lengths` has the tokens of each completion in such a row, so with its context.
        """
        out = [(0, 0)] * len(lengths)
        for row in self.rows:
            before = 0
            for number, i in enumerate(row, 1):
                out[i] = (number, before)
                before += lengths[i]
        return out


def samples_of(
    groups: Sequence[Group],
    contexts: Reprompts,
    loss: Loss,
    policy: Policy,
    longest: int,
    teacher: Teacher | None = None,
) -> Samples:
    """Returns the facts about each completion of an update that the learner reads, on the host.

    Args:
        groups: The graded groups.
        contexts: What the teacher reads for each completion, by context. A completion is distilled
            if every context has what it shows.
        loss: Says how much is distilled. Only completions that add to the loss are learned. Those
            are the distilled ones, where loss.distillation is over 0, and those with an advantage,
            where it is under 1. A policy.credit may be for all.
        policy: Says how rewards become advantages.
        longest: Tokens that a completion may have.
        teacher: Says which of several models teaches a completion; None: there is only one.
    """
    grades = [x for g in groups for x in g.grades]
    group = np.array([i for i, g in enumerate(groups) for _ in g.grades], np.int32)
    length = np.array([len(c.tokens) for g in groups for c in g.completions], np.int32)
    rewards = overlong_shaped(np.array([x.reward for x in grades]), length, longest, policy)
    advantage = advantages(rewards, group, policy)
    distilled = np.full(len(grades), bool(contexts))
    for reprompts in contexts.values():
        distilled &= np.array([r.distilled for of_group in reprompts for r in of_group])
    pass_rate = [np.mean([x.correct for x in g.grades]) for g in groups for _ in g.grades]
    share = loss.distillation
    # NaN is a signal too: it must reach the gradient, which shows it.
    has_policy = credits.has_credit(policy, advantage) & (share < 1)
    low = 0.0  # Only one credit reads it, and finding it sorts all tokens of the update.
    if policy.credit == "unlikely":
        low = credits.unlikely_below(policy, [c.logprobs for g in groups for c in g.completions])
    return Samples(
        advantage=advantage,
        distilled=distilled,
        learned=(distilled & (share > 0)) | has_policy,
        pass_rate=np.array(pass_rate, np.float32),
        correct=np.array([x.correct for x in grades], bool),
        unlikely_below=np.full(len(grades), low, np.float32),
        length=length,
        route=None if teacher is None or not teacher.route else routes(groups, teacher),
    )


def routes(groups: Sequence[Group], teacher: Teacher) -> np.ndarray:
    """Returns int32[B]: the number of each completion's teacher among `teacher.models`.

    Raises UserError for a row whose column names none.
    """
    numbers = {value: number for number, value in enumerate(teacher.models)}
    out = []
    for group in groups:
        value = str(group.example.columns.get(teacher.route))
        if value not in numbers:
            raise UserError(
                f"teacher.route is {teacher.route!r}: the row {group.example.id} has the value "
                f"{value!r} there; teacher.models has {', '.join(numbers)}"
            )
        out += [numbers[value]] * len(group.completions)
    return np.array(out, np.int32)


def pack(
    groups: Sequence[Group],
    contexts: Reprompts,
    samples: Samples,
    epistemic: Sequence[np.ndarray],
    optim: Optim,
    pad_id: int,
) -> Batch:
    """Returns the host arrays of one update.

    Only completions that are learned get a row: alone in it, or with optim.row_tokens together
    with others. The others would add exactly 0 to the loss, and still count in its denominators.

    Args:
        groups: The graded groups.
        contexts: What the teacher reads for each completion, by context; {} without a teacher.
        samples: The completions, as samples_of returns them.
        epistemic: bool[T_i] for each completion: the tokens of epistemic words.
        optim: Says how many rows a microbatch has, and how many tokens a row.
        pad_id: The token of padding.
    """
    completions = [c for g in groups for c in g.completions]
    learned = np.flatnonzero(samples.learned).tolist()
    tokens = [completions[i].tokens for i in learned]
    prompts = [g.prompt for g in groups for _ in g.completions]
    read = {STUDENT: [prompts[i] for i in learned]}
    for name, reprompts in contexts.items():
        taught = [r.tokens for of_group in reprompts for r in of_group]
        read[name] = [taught[i] for i in learned]
    # int64[N, 1 + K]: tokens of each completion alone, and with each of its K contexts.
    alone = np.array([len(t) for t in tokens], np.int64)
    ends = [alone + np.array([len(p) for p in of], np.int64) for of in read.values()]
    sizes = np.stack([alone, *ends], axis=1)
    layout = layout_of(sizes, len(completions), optim.microbatch, optim.row_tokens)
    packed = {name: _packed(of, tokens, layout, pad_id) for name, of in read.items()}
    logprobs = [completions[i].logprobs for i in learned]
    rows = Rows(
        student=packed[STUDENT],
        contexts={name: packed[name] for name in contexts},
        token=layout.array(tokens, pad_id, np.int32),
        sample=_of_tokens(learned, tokens, layout),
        index=layout.array([np.arange(len(t)) for t in tokens], 0, np.int32),
        sampler_logprobs=layout.array(logprobs, 0.0, np.float32),
        old_logprobs=None,
        epistemic=layout.array([epistemic[i] for i in learned], False, np.bool_),
        route=None if samples.route is None else _of_tokens(samples.route[learned], tokens, layout),
    )
    filled = -(-len(layout.rows) // optim.microbatch)
    widths = [x.packed.tokens.shape[-1] for x in packed.values()]
    computed = max(filled * optim.microbatch * sum(widths), 1)
    return Batch(
        rows=rows,
        samples=samples,
        microbatches=np.int32(filled),
        padding=np.float32(1.0 - sizes[:, 1:].sum() / computed if filled else 0.0),
    )


def _of_tokens(
    values: Sequence[int] | np.ndarray, tokens: Sequence[np.ndarray], layout: Layout
) -> np.ndarray:
    """Returns int32[M, R, C]: each completion's value at each of its tokens; -1 elsewhere."""
    each = [np.full(len(t), value) for t, value in zip(tokens, values, strict=True)]
    return layout.array(each, -1, np.int32)


def places(batch: Batch) -> np.ndarray:
    """Returns int64[B]: the flat index in an array [M, R, C] of each completion's first token.

    It is -1 for a completion without a row. `batch` must be the one that `pack` returns, because
    no host can read all of a batch that is split over hosts.
    """
    out = np.full(len(batch.samples.length), -1, np.int64)
    first = np.flatnonzero((batch.rows.index == 0) & (batch.rows.sample >= 0))
    out[batch.rows.sample.reshape(-1)[first]] = first
    return out


def rows_with(batch: Batch, at: Sequence[int], shards: int, number: int) -> Rows:
    """Returns at least `number` rows of a host batch, in blocks of one row per shard.

    `at` has the flat indices of tokens (see places), at least one and at most `number`. The row of
    the first token fills the blocks up, so that the shape depends on the shape of the batch only.
    """
    blocks = -(-number // shards)
    rows = np.array(at) // batch.rows.token.shape[-1]
    rows = np.concatenate([rows, np.repeat(rows[:1], blocks * shards - len(rows))])

    def pick(x: np.ndarray) -> np.ndarray:
        width = x.shape[-1]
        return x.reshape(-1, width)[rows].reshape(blocks, shards, width)

    return jax.tree.map(pick, batch.rows)


def _packed(
    contexts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    layout: Layout,
    pad_id: int,
) -> ContextRows:
    """Returns rows of contexts, each before its completion.

    A context has at least one token, because its last one predicts the first of the completion.
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
    return ContextRows(packed=packed, index=layout.array(index, 0, np.int32))


def layout_of(sizes: np.ndarray, completions: int, microbatch: int, row_tokens: int) -> Layout:
    """Returns the layout of completions with these `sizes` (see assign), `microbatch` rows each.

    With `row_tokens` 0 each completion has a row alone. Otherwise the number of rows is rounded up
    to a bucket, so that few programs compile, and never exceeds the update's `completions`.
    """
    if row_tokens == 0:
        rows, most = [[i] for i in range(len(sizes))], completions
    else:
        rows = assign(sizes, row_tokens=row_tokens, multiple=microbatch)
        most = min(bucket(max(len(rows), 1)), completions)
    shape = (-(-most // microbatch), microbatch)
    return Layout(rows=rows, shape=shape, several=row_tokens > 0)


def assign(sizes: np.ndarray, *, row_tokens: int, multiple: int) -> list[list[int]]:
    """Returns the completions of each row; every completion is in exactly one row.

    sizes: int[N, K], K counts of tokens for each completion, such as what it adds to a student
    row, to a teacher row and to the head. No count of a row exceeds `row_tokens`, unless a single
    completion does: its size is then the limit, because all rows are padded to the longest
    anyway. The number of rows is what first-fit-decreasing needs. Up to the next `multiple` there
    may be more, where that makes rows shorter, because a microbatch computes that many in any case.
    """
    if not len(sizes):
        return []
    limit = max(row_tokens, int(sizes.max()))
    rows = _first_fit(sizes, limit)
    return _spread(sizes, limit, -(-len(rows) // multiple) * multiple) or rows


def _first_fit(sizes: np.ndarray, limit: int) -> list[list[int]]:
    """Returns the rows that result if each completion goes to the first row with room for it."""
    used = np.zeros_like(sizes)  # at worst there is one row per completion
    rows: list[list[int]] = [[] for _ in sizes]
    for i in _decreasing(sizes):
        row = int(np.argmax(np.all(used + sizes[i] <= limit, axis=1)))
        used[row] += sizes[i]
        rows[row].append(i)
    return [row for row in rows if row]


def _spread(sizes: np.ndarray, limit: int, number: int) -> list[list[int]]:
    """Returns at most `number` rows that are about equal in each count; [] if one has no room.

    Each completion goes to the row that stays the least full. A row is full in a count when it has
    the mean of that count over rows.
    """
    share = sizes / np.maximum(sizes.sum(axis=0), 1)
    used, full = np.zeros((number, sizes.shape[1]), sizes.dtype), np.zeros((number, share.shape[1]))
    rows: list[list[int]] = [[] for _ in range(number)]
    for i in _decreasing(share):
        room = np.all(used + sizes[i] <= limit, axis=1)
        if not room.any():
            return []
        row = int(np.argmin(np.where(room, (full + share[i]).max(axis=1), np.inf)))
        used[row] += sizes[i]
        full[row] += share[i]
        rows[row].append(i)
    return [row for row in rows if row]


def _decreasing(sizes: np.ndarray) -> list[int]:
    """Returns the completions in order of falling largest count; equal ones stay in order."""
    return np.argsort(-sizes.max(axis=1), kind="stable").tolist()
