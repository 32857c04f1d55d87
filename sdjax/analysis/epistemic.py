"""Epistemic verbalization: how often a text says "wait", "perhaps", "let me check". No jax.

Two modes and one's own list:

paper   substring counts of ten words, as arXiv:2603.24472 and its code do: "unlikely" counts as
        "likely", "await" as "wait"
word    whole words, with the inflections listed in WORD
PATH    a JSON file {"word": ["form", ...], ...}; its forms are counted as whole words
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
    """A word as it is searched for in lower-case text, without overlap."""

    pattern: re.Pattern[str]
    beginnings: tuple[str, ...]
    """With one of which every match begins: what makes the search fast."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields where the word begins and ends, as the pattern's finditer does."""
        at = sorted({i for form in self.beginnings for i in _occurrences(text, form)})
        done = 0
        for start in at:
            if start >= done and (match := self.pattern.match(text, start)):
                done = match.end()
                yield start, done


def _occurrences(text: str, form: str) -> Iterator[int]:
    at = text.find(form)
    while at >= 0:
        yield at
        at = text.find(form, at + 1)


@dataclass(frozen=True)
class Lexicon:
    """The words that are counted, by name."""

    words: Mapping[str, Word]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Epistemic words of several responses; a rate over nothing is 0."""

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
    """Returns the lexicon called "paper" or "word", or the one in the JSON file of that path."""
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
    """Returns how often each word of the lexicon occurs in a text, in any case of letters."""
    lowered = text.lower()
    return {name: sum(1 for _ in w.spans(lowered)) for name, w in lexicon(mode).words.items()}


def summarise(texts: Sequence[str], lengths: Sequence[int], mode: str = "paper") -> Summary:
    """Returns counts and rates over responses; `lengths` are their numbers of tokens."""
    return _summary([count(text, mode) for text in texts], lengths, mode)


def _summary(counts: Sequence[Mapping[str, int]], lengths: Sequence[int], mode: str) -> Summary:
    words = {word: sum(of[word] for of in counts) for word in lexicon(mode).words}
    total = sum(words.values())
    return Summary(
        words=words,
        total=total,
        per_response=total / max(len(counts), 1),
        per_1000_tokens=1000 * total / max(int(sum(lengths)), 1),
    )


@dataclass(frozen=True, kw_only=True)
class ByGrade:
    """Summaries of all responses, of the correct and of the wrong ones; None where none is."""

    all: Summary
    correct: Summary | None
    wrong: Summary | None

    def metrics(self) -> dict[str, float]:
        """Returns the rates that training logs, by name; none of what there is not."""
        parts = {"": self.all, "_correct": self.correct, "_wrong": self.wrong}
        return {
            f"epistemic_{rate}{part}": getattr(summary, rate)
            for part, summary in parts.items()
            if summary is not None
            for rate in ("per_response", "per_1000_tokens")
        }


def by_grade(
    texts: Sequence[str], lengths: Sequence[int], correct: Sequence[bool], mode: str = "paper"
) -> ByGrade:
    """Returns the summaries of responses of which each was graded `correct` or not."""
    counts = [count(text, mode) for text in texts]

    def of(kind: bool) -> Summary | None:
        chosen = [i for i, value in enumerate(correct) if bool(value) == kind]
        if not chosen:
            return None
        return _summary([counts[i] for i in chosen], [lengths[i] for i in chosen], mode)

    return ByGrade(all=_summary(counts, lengths, mode), correct=of(True), wrong=of(False))


def epistemic_tokens(token_texts: Sequence[str], mode: str = "paper") -> np.ndarray:
    """Returns bool[T]: which tokens take part in an epistemic word, as tokens_of_words says."""
    marked = np.zeros(len(token_texts), bool)
    for of_word in tokens_of_words(token_texts, mode).values():
        marked |= of_word
    return marked


def tokens_of_words(token_texts: Sequence[str], mode: str = "paper") -> dict[str, np.ndarray]:
    """Returns bool[T] for each word that occurs: which tokens take part in it.

    `token_texts` are the texts of the tokens one by one; a word may span several, and a token
    that holds more than the word counts whole. Lower-casing is by token, since it can change a
    text's length.
    """
    lowered = [text.lower() for text in token_texts]
    ends = np.cumsum([len(text) for text in lowered], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    text = "".join(lowered)
    found = {}
    for name, word in lexicon(mode).words.items():
        spans = np.array(list(word.spans(text)), np.int64).reshape(-1, 2)
        if not len(spans):
            continue
        change = np.zeros(len(lowered) + 1, np.int64)
        np.add.at(change, np.searchsorted(ends, spans[:, 0], side="right"), 1)
        np.add.at(change, np.searchsorted(starts, spans[:, 1], side="left"), -1)
        found[name] = np.cumsum(change)[:-1] > 0
    return found
