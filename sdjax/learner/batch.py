"""Groups and reprompts as arrays: what one update reads.

Rows of student and teacher come in pairs: row r of both holds the same completions, so whatever
splits rows over devices keeps a completion's two contexts together, and gathering the positions
that predict it stays inside a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sdjax.config import Policy
from sdjax.objectives.policy_gradient import advantages, overlong_shaped
from sdjax.parallel.shapes import bucket
from sdjax.records import Group, Reprompt

# numpy while it is packed, jax once it is placed.
Array = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows of tokens. Segment 0 is padding; positions count from 0 in each segment.

    No segments: every row is one sequence, perhaps padded on the right.
    """

    tokens: Array  # int32[M, R, S]
    segment_ids: Array | None  # int32[M, R, S]
    positions: Array  # int32[M, R, S]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rows:
    """M microbatches of R rows, C completion tokens a row.

    `student_index` and `teacher_index` say where in its row a completion token is predicted: one
    before the token itself. `sample` is the token's completion, or -1 where there is no token.
    """

    student: Packed
    teacher: Packed | None
    token: Array  # int32[M, R, C]
    student_index: Array  # int32[M, R, C]
    teacher_index: Array | None  # int32[M, R, C]
    sample: Array  # int32[M, R, C]
    index: Array  # int32[M, R, C], position in the completion
    sampler_logprobs: Array  # float32[M, R, C]
    old_logprobs: Array | None  # float32[M, R, C]; None: those of the params being updated
    epistemic: Array  # bool[M, R, C]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is known of each of the update's B completions."""

    advantage: Array  # float32[B]
    distilled: Array  # bool[B]
    learned: Array  # bool[B], has a row
    pass_rate: Array  # float32[B], share of correct completions in the group
    length: Array  # int32[B]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """One update."""

    rows: Rows
    samples: Samples
    microbatches: Array  # int32[]: how many of the M have a completion; the others are not run


def pack(
    groups: Sequence[Group],
    reprompts: Sequence[Sequence[Reprompt]] | None,
    *,
    microbatch: int,
    distillation: float,
    policy: Policy,
    longest: int,
    pad_id: int,
    epistemic: Sequence[np.ndarray],
) -> Batch:
    """Returns the host arrays of one update, one completion a row.

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
    prompts = [g.prompt for g in groups for _ in g.completions]
    contexts = [prompts[i] for i in learned]
    shape = (len(completions) // microbatch, microbatch)
    width = bucket(max(len(c.tokens) for c in completions))

    def ragged(values: Sequence[np.ndarray], fill: float, dtype: type) -> np.ndarray:
        return _pad(values, width, fill, dtype, shape)

    def index(contexts: Sequence[np.ndarray]) -> np.ndarray:
        spans = [
            np.arange(len(p) - 1, len(p) - 1 + len(t))
            for p, t in zip(contexts, tokens, strict=True)
        ]
        return ragged(spans, 0, np.int32)

    taught = [flat[i].tokens for i in learned] if flat is not None else None
    rows = Rows(
        student=_packed(contexts, tokens, shape, pad_id),
        teacher=None if taught is None else _packed(taught, tokens, shape, pad_id),
        token=ragged(tokens, pad_id, np.int32),
        student_index=index(contexts),
        teacher_index=None if taught is None else index(taught),
        sample=ragged(
            [np.full(len(t), i) for i, t in zip(learned, tokens, strict=True)], -1, np.int32
        ),
        index=ragged([np.arange(len(t)) for t in tokens], 0, np.int32),
        sampler_logprobs=ragged([completions[i].logprobs for i in learned], 0.0, np.float32),
        old_logprobs=None,
        epistemic=ragged([epistemic[i] for i in learned], False, np.bool_),
    )
    filled = np.int32(-(-len(learned) // microbatch))
    return Batch(rows=rows, samples=samples, microbatches=filled)


def by_completion(batch: Batch, values: np.ndarray) -> np.ndarray:
    """Returns float32[B, C] from values [M, R, C] of the batch's rows; NaN where none."""
    sample = np.asarray(batch.rows.sample)[..., 0].ravel()
    out = np.full((len(batch.samples.length), values.shape[-1]), np.nan, np.float32)
    out[sample[sample >= 0]] = values.reshape(-1, values.shape[-1])[sample >= 0]
    return out


def _samples(
    groups: Sequence[Group],
    reprompts: Sequence[Reprompt] | None,
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


def _pad(
    values: Sequence[np.ndarray], width: int, fill: float, dtype: type, shape: tuple[int, int]
) -> np.ndarray:
    """Returns [*shape, width]: a value a row, filled up on the right, then empty rows."""
    out: np.ndarray = np.full((shape[0] * shape[1], width), fill, dtype)
    for row, value in zip(out, values, strict=False):
        row[: len(value)] = value
    return out.reshape(*shape, width)


def _packed(
    contexts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    shape: tuple[int, int],
    pad_id: int,
) -> Packed:
    """Returns one row for each context followed by its completion."""
    whole = [np.concatenate([p, t]) for p, t in zip(contexts, completions, strict=True)]
    width = bucket(max((len(w) for w in whole), default=1))
    positions = [np.arange(len(w)) for w in whole]
    return Packed(
        tokens=_pad(whole, width, pad_id, np.int32, shape),
        segment_ids=None,
        positions=_pad(positions, width, 0, np.int32, shape),
    )
