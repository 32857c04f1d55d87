"""Computes how long completions and their parts are, and how many were truncated."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Statistics of the number of tokens of completions, and the share of truncated ones."""

    completions: int
    mean: float
    min: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    max: float
    truncated: float

    def to_dict(self) -> dict[str, float]:
        """Returns the statistics by name."""
        return dataclasses.asdict(self)


def summarise(lengths: Sequence[int], truncated: Sequence[bool]) -> Lengths:
    """Returns the statistics of completions' lengths, with whether each was truncated.

    Raises ValueError if there are no completions, or if the two arguments differ in length.
    """
    if not len(lengths) or len(lengths) != len(truncated):
        raise ValueError(f"got {len(lengths)} lengths and {len(truncated)} truncation flags")
    low, p5, p25, p50, p75, p95, high = np.percentile(lengths, [0, 5, 25, 50, 75, 95, 100])
    return Lengths(
        completions=len(lengths),
        mean=float(np.mean(lengths)),
        min=float(low),
        p5=float(p5),
        p25=float(p25),
        p50=float(p50),
        p75=float(p75),
        p95=float(p95),
        max=float(high),
        truncated=float(np.mean(truncated)),
    )


def thinking_tokens(pieces: Sequence[str], *, begun: bool = False) -> int:
    """Returns how many tokens of a completion are thinking; the others are the answer.

    Thinking ends with the token that completes the last </think>. The answer has all that follows,
    with white space and the stop token. Without that tag, see `split_thinking`.
    """
    text = "".join(pieces)
    end = text.rfind(CLOSE)
    if end < 0:
        return len(pieces) if _has_begun(text, begun) else 0
    ends = itertools.accumulate(map(len, pieces))
    return next(i for i, reached in enumerate(ends, 1) if reached >= end + len(CLOSE))


def split_thinking(text: str, *, begun: bool = False) -> tuple[str, str]:
    """Returns the thinking and the answer of a completion, without the tags between them.

    The answer follows the last </think>. A text without that tag is all answer, unless thinking has
    begun. It has begun with <think> at the start of the text, or at the end of the prompt
    (`begun`); then the text is all thinking.
    """
    thinking, tag, answer = text.rpartition(CLOSE)
    if not tag:
        thinking, answer = (text, "") if _has_begun(text, begun) else ("", text)
    return thinking.lstrip().removeprefix(OPEN).strip(), answer.strip()


def _has_begun(text: str, begun: bool) -> bool:
    return begun or text.lstrip().startswith(OPEN)
