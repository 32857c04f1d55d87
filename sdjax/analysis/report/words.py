"""Counts epistemic words before and after training, by run and set of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdjax.analysis import epistemic
from sdjax.analysis.report import read
from sdjax.analysis.report.read import RunRecord

ROLLOUTS = "training, first and last tenth of the steps"


@dataclass(kw_only=True)
class WordCounts:
    """How often each word occurs in a number of completions, and the number of their tokens.

    `push` covers words in completions with known log-probabilities. It holds the sum, in nats, of
    teacher minus student over the tokens that take part in the word, and the number of these
    tokens.
    """

    step: str = ""
    completions: int = 0
    tokens: float = 0.0
    words: dict[str, int] = field(default_factory=dict)
    push: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, other: WordCounts) -> None:
        """Adds the counts of other completions."""
        self.completions += other.completions
        self.tokens += other.tokens
        for word, number in other.words.items():
            self.words[word] = self.words.get(word, 0) + number
        for word, (push, tokens) in other.push.items():
            of_word = self.push.get(word, (0.0, 0))
            self.push[word] = (of_word[0] + push, of_word[1] + tokens)

    @property
    def total(self) -> int:
        """The number of all words."""
        return sum(self.words.values())

    @property
    def per_1000_tokens(self) -> float:
        """Words per 1,000 tokens; 0 if there are no tokens."""
        return 1000 * self.total / max(self.tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One run's counts at its first and last measurement, in one set and by one lexicon."""

    run: str
    set: str
    lexicon: str
    before: WordCounts
    after: WordCounts

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**vars(self), "before": vars(self.before), "after": vars(self.after)}


def of_text(text: str, tokens: int, mode: str) -> WordCounts:
    """Returns the counts of one completion by a lexicon."""
    return WordCounts(completions=1, tokens=tokens, words=epistemic.count(text, mode))


def pushed(pieces: Sequence[str], push: np.ndarray, mode: str) -> dict[str, tuple[float, int]]:
    """Returns WordCounts.push of one completion from the texts of its tokens and float64[T]
    push."""
    out = {}
    for word, tokens in epistemic.tokens_of_words(pieces, mode).items():
        known = push[tokens & np.isfinite(push)]
        out[word] = (float(known.sum()), len(known))
    return out


def of_evaluations(run: RunRecord) -> list[Change]:
    """Returns the changes from a run's first to its last evaluation; none if it has only one."""
    if len(run.evaluations) < 2:
        return []
    first, last = (dict(read.sets(run.evaluations[i])) for i in (0, -1))
    steps = [str(run.evaluations[i]["step"]) for i in (0, -1)]
    # The keys under which evaluations keep their counts, with the lexicon of each.
    own = run.evaluations[0].get("lexicon", run.lexicon)
    modes = {"epistemic": own} | ({} if own == "word" else {"epistemic_word": "word"})
    return [
        Change(
            run=run.name,
            set=name,
            lexicon=lexicon,
            before=_evaluated(steps[0], first[name], key),
            after=_evaluated(steps[1], last[name], key),
        )
        for name in first
        for key, lexicon in modes.items()
        if name in last and key in first[name] and key in last[name]
    ]


def _evaluated(step: str, figures: Mapping[str, Any], key: str) -> WordCounts:
    completions = int(figures["lengths"]["completions"])
    counts = {k: v for k, v in figures[key].items() if not k.startswith(("per_", "total"))}
    return WordCounts(
        step=step,
        completions=completions,
        tokens=completions * float(figures["lengths"]["mean"]),
        words=counts,
    )


def of_steps(run: str, by_step: Mapping[int, Mapping[str, WordCounts]]) -> list[Change]:
    """Returns the changes from the first tenth of the steps to the last tenth, by lexicon.

    `by_step` holds the counts of each step's rollouts by lexicon. Fewer than two steps give no
    change.
    """
    steps = sorted(by_step)
    if len(steps) < 2:
        return []
    tenth = max(1, len(steps) // 10)
    ends = (steps[:tenth], steps[-tenth:])
    out = []
    for lexicon in by_step[steps[0]]:
        before, after = (_sum(by_step, end, lexicon) for end in ends)
        out.append(Change(run=run, set=ROLLOUTS, lexicon=lexicon, before=before, after=after))
    return out


def _sum(
    by_step: Mapping[int, Mapping[str, WordCounts]], steps: Sequence[int], lexicon: str
) -> WordCounts:
    total = WordCounts(step=str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}")
    for step in steps:
        total.add(by_step[step][lexicon])
    return total
