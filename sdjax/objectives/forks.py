"""Says which positions are forks: where several continuations stay open.

arXiv:2607.05184 calls high-entropy positions forks "where multiple continuations remain plausible".
Its thresholds are not known here, so the constants are these:

    ENTROPY        The 80th percentile over the tokens of Qwen3-8B in arXiv:2506.01939 section 3,
                   which calls the tokens above it forking tokens. It is constant, because a share
                   of each batch, such as its top fifth, could not fall.
    PROBABILITY    A continuation is open with this probability or more. This value and the next
    CONTINUATIONS  are sdjax's own: two tokens are the least that a path can part into.

Both conditions are needed. A distribution over many unlikely tokens has entropy but no open
continuation beside the first; one of .9 and .1 has two of little entropy.
"""

from __future__ import annotations

import jax

ENTROPY = 0.672
"""Nats, at temperature 1."""
PROBABILITY = 0.1
"""Of a token, at temperature 1."""
CONTINUATIONS = 2


def is_high(entropy: jax.Array) -> jax.Array:
    """Returns bool[...]: whether an entropy in nats is high."""
    return entropy >= ENTROPY


def is_fork(entropy: jax.Array, open_tokens: jax.Array) -> jax.Array:
    """Returns bool[...]: whether a position is a fork.

    `open_tokens` counts the tokens of its distribution with PROBABILITY or more.
    """
    return is_high(entropy) & (open_tokens >= CONTINUATIONS)
