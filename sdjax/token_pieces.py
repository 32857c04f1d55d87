"""Splits a text among the tokens that spell it.

A token may hold a part of a character only. Decoders write U+FFFD for it, until all parts are
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

PART = "\N{REPLACEMENT CHARACTER}"  # a decoder's text of a part of a character
WINDOW = 64  # torn tokens that are decoded together at most


def split(
    tokens: Sequence[int],
    texts: Sequence[str],
    byte_ids: Set[int],
    inside: Callable[[Sequence[int]], str],
) -> list[str]:
    """Returns one text per token. A character of several tokens belongs to the first of them.

    `texts` are those of the tokens alone, and `byte_ids` the tokens that stand for one byte.
    `inside` decodes tokens as they are behind other text.
    """
    out = list(texts)
    torn = [PART in text or i in byte_ids for i, text in zip(tokens, texts, strict=True)]
    start = 0
    while start < len(tokens):
        end = start + 1
        if tokens[start] in byte_ids:
            # A decoder that falls back to bytes takes all that follow each other together.
            while end < len(tokens) and tokens[end] in byte_ids:
                end += 1
            out[start:end] = _of_bytes(inside(tokens[start:end]), end - start)
        elif torn[start]:
            known = [texts[start]]
            while end < len(tokens) and torn[end] and known[-1].endswith(PART):
                end += 1
                known.append(inside(tokens[start:end]))
                if len(known) == WINDOW:
                    break
            out[start:end] = shares(known)
        start = end
    return out


def _of_bytes(text: str, count: int) -> list[str]:
    """Returns the share of each of `count` bytes in their text."""
    spelled = [part for c in text for part in (c, *[""] * (len(c.encode()) - 1))]
    # Where one of the bytes is wrong, each of them is U+FFFD.
    return spelled if len(spelled) == count else [*text][:count] + [""] * (count - len(text))


def shares(texts: Sequence[str]) -> list[str]:
    """Returns the share of each token in a text, from the texts of the first 1, 2, ... tokens.

    A character belongs to the first token from which on the texts reach behind its place. They
    may grow shorter, because several parts become one character.
    """
    ends, end = [], len(texts[-1])
    for text in reversed(texts):
        end = min(end, len(text))
        ends.append(end)
    ends.reverse()
    return [texts[-1][a:b] for a, b in zip([0, *ends], ends, strict=False)]
