"""Packs rollouts into compressed blocks of bounded size."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdjax.analysis.report import rollouts
from sdjax.analysis.report.read import RunRecord
from sdjax.analysis.report.rollouts import Shown, Survey
from sdjax.errors import UserError

ROWS, TOKENS = 64, 30_000
"""Limits of one block: ROWS rollouts, and no further rollout after TOKENS tokens. Blocks are small
because the page unpacks a whole block to open one rollout."""


@dataclass(kw_only=True)
class CompressedBlock:
    """The rollouts in the form that the page reads.

    `index` has one column per field of Shown.index, and in "first" the number of each block's first
    rollout. `blocks` are base64 texts by name: text-0, detail-0, tops-0, text-1, ... `note` states
    what was left out; it is empty if nothing was.
    """

    index: dict[str, list] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    note: str = ""

    def size(self, *kinds: str) -> int:
        """Returns the number of bytes of the blocks of these kinds: text, detail, tops."""
        return sum(len(b) for name, b in self.blocks.items() if name.split("-")[0] in kinds)


def packed(value: Any) -> str:
    """Returns a value as JSON, gzipped, in base64.

    The JSON is ASCII, so that any Python text survives, even one with lone surrogates.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def fit(
    runs: Sequence[RunRecord],
    surveys: Sequence[Survey],
    lexicon: str,
    max_rollouts: int,
    limit: int,
) -> CompressedBlock:
    """Returns the rollouts of several runs in at most `limit` bytes.

    Runs get equal shares. Each run contributes rollouts with tokens first, in whole groups spaced
    evenly over the run. If the result is too large, alternatives are reduced first: only every
    second, third, ... completion with alternatives keeps them. Then the number of groups is
    reduced. Raises UserError if not even one rollout fits.

    Args:
      runs: the runs.
      surveys: the survey of each run.
      lexicon: mode of sdjax.analysis.epistemic.
      max_rollouts: largest number of rollouts.
      limit: largest number of bytes.
    """
    every, wanted, total = 1, max_rollouts, sum(s.rows for s in surveys)
    # Every token takes at least two bytes, so a larger number of rollouts cannot fit.
    mean = sum(s.tokens for s in surveys) / max(total, 1)
    wanted = min(wanted, total, int(limit / (2 * mean)) if mean else wanted)
    while wanted > 0:
        parts = rollouts.shares([s.rows for s in surveys], wanted)
        keep = [
            rollouts.chosen(s.groups, s.whole, part) for s, part in zip(surveys, parts, strict=True)
        ]
        made = _pack(
            (
                row
                for number, run in enumerate(runs)
                for row in rollouts.shown(run, number, keep[number], lexicon)
            ),
            every,
        )
        bare, tops = made.size("text", "detail") + len(packed(made.index)), made.size("tops")
        if bare + tops <= limit:
            made.note = _note(made.rows, total, every)
            return made
        if tops and bare < 0.9 * limit:
            every = max(every + 1, math.ceil(every * tops / (limit - bare)))
        elif tops and bare < limit:
            every = 10**9
        else:
            wanted, every = int(min(wanted - 1, made.rows * 0.95 * limit / bare)), 1
    if total and max_rollouts:
        raise UserError(f"max_mb is too low: no rollout fits in {limit / 1e6:.3g} MB; raise it")
    return CompressedBlock()


def _note(rows: int, total: int, every: int) -> str:
    parts = []
    if rows < total:
        parts.append(
            f"{rows:,} of {total:,} rollouts are shown: those with their tokens first, whole "
            "groups evenly spaced over each run"
        )
    if every > 1:
        which = "no completion" if every == 10**9 else f"1 in {every} of the completions with them"
        parts.append(f"alternatives are kept of {which}")
    return "; ".join(parts)


def _pack(rows: Iterable[Shown], every: int) -> CompressedBlock:
    out = CompressedBlock(index={"first": []})
    block: list[Shown] = []
    seen = tokens = 0

    def close() -> None:
        if block:
            out.index["first"].append(out.rows)
            _write(out, len(out.index["first"]) - 1, block)
            out.rows += len(block)
            block.clear()

    for row in rows:
        if row.tops is not None:
            seen += 1
            if seen % every:
                row = Shown(index=row.index, text=row.text, detail=row.detail, tops=None)
        for name, value in row.index.items():
            out.index.setdefault(name, []).append(value)
        out.index.setdefault("tops", []).append(int(row.tops is not None))
        block.append(row)
        tokens += row.index["length"]
        if len(block) == ROWS or tokens >= TOKENS:
            close()
            tokens = 0
    close()
    return out


def _write(out: CompressedBlock, number: int, block: Sequence[Shown]) -> None:
    strings: dict[str, int] = {}

    def place(text: str) -> int:
        return strings.setdefault(text, len(strings))

    details = [
        {k: place(v) if k in ("prompt", "reprompt") else v for k, v in row.detail.items()}
        for row in block
    ]
    out.blocks[f"text-{number}"] = packed([row.text for row in block])
    out.blocks[f"detail-{number}"] = packed({"rows": details, "strings": list(strings)})
    if any(row.tops for row in block):
        strings.clear()
        tops = [
            row.tops
            and {
                who: each and [[place(x) if isinstance(x, str) else x for x in t] for t in each]
                for who, each in row.tops().items()
            }
            for row in block
        ]
        out.blocks[f"tops-{number}"] = packed({"rows": tops, "strings": list(strings)})
