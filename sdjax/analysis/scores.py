"""Computes the figures of an evaluation from the rows of its answers.jsonl."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sdjax.analysis import accuracy as accuracies
from sdjax.analysis import epistemic as words
from sdjax.analysis import fork_rates
from sdjax.analysis import lengths as sizes


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of one set of examples; lengths are in tokens.

    Both counts of epistemic words cover thinking and answer. `verbalization` follows the config's
    lexicon. `epistemic_word` counts the paper's ten words as whole words.
    """

    accuracy: accuracies.Accuracy
    lengths: sizes.Lengths
    thinking: sizes.Lengths
    answer: sizes.Lengths
    verbalization: words.ByGrade
    epistemic_word: words.Summary
    forks: fork_rates.ForkCounts | None
    """None where they were not counted."""

    @property
    def epistemic(self) -> words.Summary:
        """The words of correct and wrong completions together."""
        return self.verbalization.all

    def metrics(self, prefix: str) -> dict[str, float]:
        """Returns the metrics that training logs, named PREFIX/NAME."""
        values = {name: e.value for name, e in self.accuracy.estimates.items()} | {
            "length": self.lengths.mean,
            "thinking_length": self.thinking.mean,
            "answer_length": self.answer.mean,
            "truncated": self.lengths.truncated,
        }
        values |= self.verbalization.metrics()
        values |= {} if self.forks is None else self.forks.metrics()
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "accuracy": self.accuracy.to_dict(),
            "lengths": self.lengths.to_dict(),
            "thinking": self.thinking.to_dict(),
            "answer": self.answer.to_dict(),
            "epistemic": _counts(self.epistemic),
            "epistemic_correct": _counts(self.verbalization.correct),
            "epistemic_wrong": _counts(self.verbalization.wrong),
            "epistemic_word": _counts(self.epistemic_word),
        } | ({} if self.forks is None else {"forks": self.forks.to_dict()})


def _counts(summary: words.Summary | None) -> dict[str, float] | None:
    if summary is None:
        return None
    rates = {k: v for k, v in asdict(summary).items() if k != "words"}
    return summary.words | rates


def of_rows(rows: Sequence[Mapping[str, Any]], lexicon: str = "paper") -> Scores:
    """Returns the scores of one set of answers; the k answers of an example follow each other.

    A row has id, completion, tokens, thinking_tokens, answer_tokens, finish, correct and details.
    `vote` in details votes in maj@k, or else `prediction`. Without either in any row, there is no
    maj@k. Where forks were counted, it has those of fork_rates.COUNTS too. `lexicon` is a mode of
    sdjax.analysis.epistemic.
    """
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["id"])]
    truncated = [row["finish"] == "length" for row in rows]
    tokens = [row["tokens"] for row in rows]
    texts = [row["completion"] for row in rows]
    return Scores(
        accuracy=accuracies.measure(
            [[row["correct"] for row in group] for group in groups],
            [[accuracies.vote(row["details"]) for row in group] for group in groups]
            if any(accuracies.has_vote(row["details"]) for row in rows)
            else None,
        ),
        lengths=sizes.summarise(tokens, truncated),
        thinking=sizes.summarise([row["thinking_tokens"] for row in rows], truncated),
        answer=sizes.summarise([row["answer_tokens"] for row in rows], truncated),
        verbalization=words.by_grade(texts, tokens, [row["correct"] for row in rows], lexicon),
        epistemic_word=words.summarise(texts, tokens, "word"),
        forks=fork_rates.of_rows(rows),
    )


def to_markdown(scores: Mapping[str, Scores]) -> str:
    """Returns a Markdown table with one column per set and one row per figure."""
    columns = list(scores.values())
    level = f"{100 * columns[0].accuracy.level:g}% interval"
    estimates = dict.fromkeys(name for s in columns for name in s.accuracy.estimates)

    def percent(s: Scores, name: str) -> str:
        if name not in s.accuracy.estimates:
            return ""
        e = s.accuracy.estimates[name]
        return f"{100 * e.value:.1f} ({100 * e.low:.1f} to {100 * e.high:.1f})"

    rows = [
        ["examples", *(str(s.accuracy.examples) for s in columns)],
        *([f"{n}, % ({level})", *(percent(s, n) for s in columns)] for n in estimates),
        ["truncated, %", *(f"{100 * s.lengths.truncated:.1f}" for s in columns)],
        ["mean tokens", *(f"{s.lengths.mean:.1f}" for s in columns)],
        ["mean thinking tokens", *(f"{s.thinking.mean:.1f}" for s in columns)],
        ["mean answer tokens", *(f"{s.answer.mean:.1f}" for s in columns)],
        *_epistemic_rows([s.verbalization for s in columns]),
        ["the ten of the paper, whole", *(f"{s.epistemic_word.per_response:.2f}" for s in columns)],
        *_fork_rows([s.forks for s in columns]),
    ]
    lines = [["", *scores], ["---"] * (len(columns) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fork_rows(columns: Sequence[fork_rates.ForkCounts | None]) -> list[list[str]]:
    """Returns the rows of both rates, in percent; none where no set has them."""
    if all(column is None for column in columns):
        return []

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    return [
        ["forks, % of tokens", *(percent(c.rate if c else None) for c in columns)],
        ["forks, % of tokens of high entropy", *(percent(c.share if c else None) for c in columns)],
    ]


def _epistemic_rows(columns: Sequence[words.ByGrade]) -> list[list[str]]:
    """Returns the rates of all words, split by grade, and the rate of each word."""

    def rate(summary: words.Summary | None, name: str) -> str:
        return "" if summary is None else f"{getattr(summary, name):.2f}"

    def of_word(summary: words.Summary, word: str) -> str:
        per_token = summary.per_1000_tokens / max(summary.total, 1)
        return f"{summary.words[word] * per_token:.2f}"

    names = {"a response": "per_response", "per 1,000 tokens": "per_1000_tokens"}
    parts = {"": "all", ", correct": "correct", ", wrong": "wrong"}
    rates = [
        [f"epistemic words {said}{part}", *(rate(getattr(c, kind), name) for c in columns)]
        for said, name in names.items()
        for part, kind in parts.items()
    ]
    each = [
        [f"{word} per 1,000 tokens", *(of_word(c.all, word) for c in columns)]
        for word in columns[0].all.words
    ]
    return rates + each
