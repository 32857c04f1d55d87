"""Which completions share a row, and arrays made of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdjax.parallel.mesh import bucket


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The completions of each row, in order. Rows after them, up to M R, are empty."""

    rows: Sequence[Sequence[int]]
    shape: tuple[int, int]  # M microbatches of R rows
    several: bool  # whether a row may hold more than one

    def array(
        self, values: Sequence[np.ndarray], fill: float, dtype: type, *, width: int = 0
    ) -> np.ndarray:
        """Returns [M, R, n]: each row its completions' values end to end, then `fill`.

        `values` has an array for each completion; n is `width` or, with 0, the bucket of the
        longest row.
        """
        whole = [np.concatenate([values[i] for i in row]) for row in self.rows]
        number, longest = self.shape[0] * self.shape[1], max([1, *map(len, whole)])
        out: np.ndarray = np.full((number, width or bucket(longest)), fill, dtype)
        for row, value in zip(out, whole, strict=False):
            row[: len(value)] = value
        return out.reshape(*self.shape, -1)

    def places(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Returns each completion's number in its row, from 1, and how many tokens precede it.

        `lengths` are those of all completions, in the rows that are meant: with their contexts.
        """
        out = [(0, 0)] * len(lengths)
        for row in self.rows:
            before = 0
            for number, i in enumerate(row, 1):
                out[i] = (number, before)
                before += lengths[i]
        return out


def layout(sizes: np.ndarray, *, completions: int, microbatch: int, row_tokens: int) -> Layout:
    """Returns the layout of completions with these `sizes` (see assign), `microbatch` rows each.

    With `row_tokens` 0 each has a row of its own. There are never more rows than an update of
    `completions` takes that way, and else a bucket's, so that few programs compile.
    """
    if row_tokens == 0:
        rows, most = [[i] for i in range(len(sizes))], completions
    else:
        rows = assign(sizes, row_tokens=row_tokens, multiple=microbatch)
        most = min(bucket(max(len(rows), 1)), completions)
    shape = (-(-most // microbatch), microbatch)
    return Layout(rows=rows, shape=shape, several=row_tokens > 0)


def assign(sizes: np.ndarray, *, row_tokens: int, multiple: int) -> list[list[int]]:
    """Returns the completions of each row, every one of them in exactly one row.

    sizes: int[N, K], K counts of tokens for each completion, such as what it adds to a student
    row, to a teacher row and to the head. In none of them a row has over `row_tokens`, unless a
    single completion does: then that is the limit, since all rows are padded to the longest
    anyway. There are as many rows as first-fit-decreasing needs, and up to the next `multiple`
    more where that makes them shorter: so many are computed at a time, empty or not.
    """
    if not len(sizes):
        return []
    limit = max(row_tokens, int(sizes.max()))
    rows = _first_fit(sizes, limit)
    return _spread(sizes, limit, -(-len(rows) // multiple) * multiple) or rows


def _first_fit(sizes: np.ndarray, limit: int) -> list[list[int]]:
    """Returns as many rows as it takes if each completion goes to the first with room for it."""
    used = np.zeros_like(sizes)  # at worst each has a row of its own
    rows: list[list[int]] = [[] for _ in sizes]
    for i in _decreasing(sizes):
        row = int(np.argmax(np.all(used + sizes[i] <= limit, axis=1)))
        used[row] += sizes[i]
        rows[row].append(i)
    return [row for row in rows if row]


def _spread(sizes: np.ndarray, limit: int, number: int) -> list[list[int]]:
    """Returns at most `number` rows that are about equal in each count; none if one has no room.

    Each completion goes to the row that stays the least full, a count's full measure being its
    mean over rows.
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
    """Returns the completions by their largest count; equal ones stay in order."""
    return np.argsort(-sizes.max(axis=1), kind="stable").tolist()
