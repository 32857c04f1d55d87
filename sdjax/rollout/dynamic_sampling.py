"""Dynamic sampling: groups that teach nothing make room for those of further prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from sdjax.records import Group


@dataclass(frozen=True, kw_only=True)
class SampledGroups:
    """The groups that a step learns from, and all that it sampled to have them."""

    groups: Sequence[Group]
    sampled: Sequence[Group]
    rounds: int  # of sampling, the first one included


def fill(
    sample: Callable[[int], Sequence[Group]],
    has_signal: Callable[[Group], bool],
    further_rounds: int,
) -> SampledGroups:
    """Returns the groups of `sample(0)`, those without a signal replaced as far as possible.

    `sample(r)` gives the groups of round r, for r up to `further_rounds`; it is called while a
    group is without a signal (DAPO, arXiv:2503.14476 section 3.2). Of every round all groups are
    sampled, so that shapes stay the same, and those that nobody needs are dropped: kept for the
    next step they would be off policy. Groups that found no replacement stay.
    """
    groups = list(sample(0))
    sampled, rounds = list(groups), 1
    places = [i for i, group in enumerate(groups) if not has_signal(group)]
    while places and rounds <= further_rounds:
        found = sample(rounds)
        rounds += 1
        sampled += found
        useful = [group for group in found if has_signal(group)]
        for place, group in zip(places, useful, strict=False):
            groups[place] = group
        places = places[len(useful) :]
    return SampledGroups(groups=groups, sampled=sampled, rounds=rounds)


def round_key(root: jax.Array, step: int, number: int) -> jax.Array:
    """Returns the key that round `number` of a step samples with.

    Round 0 has that of a run without dynamic sampling, fold_in(root, step). Further rounds count
    down from 2^32, where no step or sequence gets to.
    """
    if number:
        root = jax.random.fold_in(root, 2**32 - number)
    return jax.random.fold_in(root, step)
