"""Epistemic verbalization: counts how often a text says "wait", "perhaps", "let me check".

The mode names the lexicon:

paper   ten words, counted as substrings, as arXiv:2603.24472 and its code do: "unlikely" counts as
        "likely", "await" as "wait"
word    the same ten, counted as whole words, with the inflections listed in _WORDS
PATH    a JSON file {"word": ["form", ...], ...}, whose forms are counted as whole words
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdjax.errors import UserError


@dataclass(frozen=True)
class Word:
    """A word, searched for in lower-case text; matches do not overlap."""

    pattern: re.Pattern[str]
    beginnings: tuple[str, ...]
    """Every match begins with one of these. The search is fast because it tries no other place."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields the beginning and end of each match, as the pattern's finditer does."""
        starts = set()
        for form in self.beginnings:
            at = text.find(form)
            while at >= 0:
                starts.add(at)
                at = text.find(form, at + 1)
        done = 0
        for start in sorted(starts):
            if start >= done and (match := self.pattern.match(text, start)):
                done = match.end()
                yield start, done


@dataclass(frozen=True)
class Lexicon:
    """The words to count, by name."""

    words: Mapping[str, Word]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts and rates of epistemic words in several responses; a rate of no responses is 0."""

    words: dict[str, int]
    total: int
    per_response: float
    per_1000_tokens: float


_WORDS = {
    "wait": ("wait",),
    "hmm": ("hm", "hmm", "hmmm", "hmmmm"),
    "perhaps": ("perhaps",),
    "maybe": ("maybe",),
    "actually": ("actually",),
    "alternatively": ("alternatively",),
    "seems": ("seems", "seem", "seemed", "seeming", "seemingly"),
    "might": ("might",),
    "likely": ("likely", "likelier", "likeliest", "unlikely"),
    "check": ("check", "checks", "checked", "checking", "recheck", "rechecking"),
}


def _whole_words(words: Mapping[str, Sequence[str]]) -> Lexicon:
    def one(forms: Sequence[str]) -> Word:
        lowered = [form.lower() for form in forms]
        shorter = [f for f in lowered if not any(f != g and f.startswith(g) for g in lowered)]
        pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, lowered))})(?!\w)"
        return Word(re.compile(pattern), tuple(dict.fromkeys(shorter)))

    return Lexicon({word: one(forms) for word, forms in words.items()})


PAPER = Lexicon({word: Word(re.compile(re.escape(word)), (word,)) for word in _WORDS})
WORD = _whole_words(_WORDS)


@functools.cache
def lexicon(mode: str) -> Lexicon:
    """Returns the lexicon "paper" or "word", or the one in the JSON file at the path `mode`.

    Raises UserError for a file that is missing or holds another structure.
    """
    if mode in ("paper", "word"):
        return PAPER if mode == "paper" else WORD
    remedy = 'must be "paper", "word" or a JSON file {"word": ["form", ...], ...}'
    try:
        words = json.loads(Path(mode).read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"epistemic lexicon {mode!r}: no such file; {remedy}") from None
    except ValueError as error:
        raise UserError(f"epistemic lexicon {mode!r}: {error}; {remedy}") from None
    if not isinstance(words, dict) or not words:
        raise UserError(f"epistemic lexicon {mode!r} holds no words; {remedy}")
    for word, forms in words.items():
        if not isinstance(forms, list) or not forms or not all(_is_form(form) for form in forms):
            raise UserError(f"epistemic lexicon {mode!r}, word {word!r} is {forms!r}; {remedy}")
    return _whole_words(words)


def _is_form(form: object) -> bool:
    return isinstance(form, str) and bool(form.strip())


def count(text: str, mode: str = "paper") -> dict[str, int]:
    """Returns how often each word of the lexicon occurs in a text, in upper or lower case."""
    lowered = text.lower()
    return {name: sum(1 for _ in w.spans(lowered)) for name, w in lexicon(mode).words.items()}


@dataclass(frozen=True, kw_only=True)
class ByGrade:
    """Summaries of all responses, of the correct and of the wrong ones; None if there are none."""

    all: Summary
    correct: Summary | None
    wrong: Summary | None

    def metrics(self) -> dict[str, float]:
        """Returns the rates that training logs, by name, without those of a missing summary."""
        parts = {"": self.all, "_correct": self.correct, "_wrong": self.wrong}
        return {
            f"epistemic_{rate}{part}": getattr(summary, rate)
            for part, summary in parts.items()
            if summary is not None
            for rate in ("per_response", "per_1000_tokens")
        }


def summarise(texts: Sequence[str], lengths: Sequence[int], mode: str = "paper") -> Summary:
    """Returns counts and rates over responses; `lengths` are their numbers of tokens."""
    return by_grade(texts, lengths, (), mode).all


def by_grade(
    texts: Sequence[str], lengths: Sequence[int], correct: Sequence[bool], mode: str = "paper"
) -> ByGrade:
    """Returns the summaries of responses, each of which was graded `correct` or not."""
    words = lexicon(mode).words
    rows = [[len(list(w.spans(text))) for w in words.values()] for text in map(str.lower, texts)]
    counts = np.array(rows, np.int64).reshape(-1, len(words))  # [responses, words]
    graded, tokens = np.array(correct, bool), np.array(lengths, np.int64)
    summaries = []
    for chosen in (slice(None), np.flatnonzero(graded), np.flatnonzero(~graded)):
        part = counts[chosen]
        of_word = dict(zip(words, part.sum(0).tolist(), strict=True))
        total = sum(of_word.values())
        summaries.append(
            Summary(
                words=of_word,
                total=total,
                per_response=total / max(len(part), 1),
                per_1000_tokens=1000 * total / max(int(tokens[chosen].sum()), 1),
            )
        )
    whole, right, wrong = summaries
    return ByGrade(
        all=whole,
        correct=right if graded.any() else None,
        wrong=None if graded.all() else wrong,
    )


def epistemic_tokens(token_texts: Sequence[str], mode: str = "paper") -> np.ndarray:
    """Returns bool[T]: which tokens are part of any epistemic word; see tokens_of_words."""
    marked = np.zeros(len(token_texts), bool)
    for of_word in tokens_of_words(token_texts, mode).values():
        marked |= of_word
    return marked


def tokens_of_words(token_texts: Sequence[str], mode: str = "paper") -> dict[str, np.ndarray]:
    """Returns bool[T] for each word that occurs: which tokens are part of it.

    `token_texts` are the texts of the single tokens. A word may span several tokens, and a token
    that holds more than the word counts as a whole. Each token is lower-cased on its own, because
    that can change a text's length.
    """
    lowered = [text.lower() for text in token_texts]
    ends = np.cumsum([len(text) for text in lowered], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    text = "".join(lowered)
    tokens_of = {}
    for name, word in lexicon(mode).words.items():
        spans = np.array(list(word.spans(text)), np.int64).reshape(-1, 2)
        if not len(spans):
            continue
        change = np.zeros(len(lowered) + 1, np.int64)
        np.add.at(change, np.searchsorted(ends, spans[:, 0], side="right"), 1)
        np.add.at(change, np.searchsorted(starts, spans[:, 1], side="left"), -1)
        tokens_of[name] = np.cumsum(change)[:-1] > 0
    return tokens_of
