"""Counts the forks of answers, by one forward pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from sdjax.objectives import divergences, forks
from sdjax.records import Group
from sdjax.rollout.engine import scoring
from sdjax.rollout.engine.sampler import LocalSampler
from sdjax.rollout.interface import Sampler


def count(sampler: Sampler, weights: Any, groups: Sequence[Group]) -> Iterator[dict[str, int]]:
    """Yields for each completion of each group how many of its positions are forks, or high.

    The distributions are those at temperature 1, whatever the completions were drawn with. The
    names are those of sdjax.analysis.fork_rates. `weights` are the sampler's, a local one.
    """
    assert isinstance(sampler, LocalSampler), "config.Eval.check_server refuses a server"
    pairs = [(g.prompt.tolist(), c.tokens.tolist()) for g in groups for c in g.completions]
    for _, high, fork in scoring.every_token(sampler, weights, pairs, _flags):
        yield {"forks": int(fork.sum()), "high_entropy": int(high.sum())}


def _flags(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the entropy at each position, whether it is high, and whether a fork is there."""
    del token
    nats, open_tokens = divergences.entropy(logits)
    return nats, forks.is_high(nats), forks.is_fork(nats, open_tokens)
