"""Chooses the rollouts that the report shows, and converts each for the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.analysis import epistemic
from sdjax.analysis.report import read, words
from sdjax.analysis.report.read import REMEDY, RunRecord
from sdjax.errors import UserError

TOPS = {"student": "student_top", "teacher": "teacher_top"}


@dataclass(kw_only=True)
class Survey:
    """The result of a first reading of a run's rollouts.

    `groups` are the numbers of successive lines with the same step and id. `whole` says for each
    line whether it has its tokens. `tokens` is the sum over all lines. `counts` are words by step
    and lexicon.
    """

    groups: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    tokens: int = 0
    counts: dict[int, dict[str, words.WordCounts]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of completions."""
        return sum(self.groups)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A rollout in the four parts that the page reads.

    `index` is for the list of rollouts, `text` for the search, and `detail` for an open rollout.
    `tops` returns the likeliest tokens of student and teacher; it is None if the rollout has none.
    """

    index: dict[str, Any]
    text: str
    detail: dict[str, Any]
    tops: Callable[[], dict[str, Any]] | None


def survey(run: RunRecord, lexicons: Sequence[str]) -> Survey:
    """Reads and checks every line of a run's rollouts; raises UserError with file and line."""
    found = Survey()
    last: tuple[Any, Any] | None = None
    for file, number, row in _rows(run):
        step, size = read.step_of(file, number, row), _length(row)
        if (step, row.get("id")) != last:
            found.groups.append(0)
            last = (step, row.get("id"))
        found.groups[-1] += 1
        found.tokens += size
        of_step = found.counts.setdefault(step, {mode: words.WordCounts() for mode in lexicons})
        whole = row.get("pieces") is not None
        found.whole.append(whole)
        pieces, push = (
            _Row(file, number, row, lexicons[0], run.lexicon).push() if whole else ([], None)
        )
        for mode in lexicons:
            counts = words.of_text(row["completion"], size, mode)
            if push is not None:
                counts.push = words.pushed(pieces, push, mode)
            of_step[mode].add(counts)
    return found


def _rows(run: RunRecord) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    for file in run.rollouts:
        for number, row in read.rows(file):
            if not isinstance(row.get("completion"), str):
                raise UserError(
                    f"{file}:{number}: completion is {str(row.get('completion'))[:40]!r}: not a "
                    f"text; {REMEDY}"
                )
            yield file, number, row


def _length(row: Mapping[str, Any]) -> int:
    if isinstance(row.get("length"), int):
        return row["length"]
    for name in ("tokens", "pieces"):
        if isinstance(row.get(name), list):
            return len(row[name])
    return 0


def shares(sizes: Sequence[int], limit: int) -> list[int]:
    """Returns equal shares of `limit`; what a small run leaves over goes to the others."""
    out = [0] * len(sizes)
    left, open_ = limit, sorted(range(len(sizes)), key=lambda i: sizes[i])
    while open_:
        i = open_.pop(0)
        out[i] = min(sizes[i], left // (len(open_) + 1))
        left -= out[i]
    return out


def chosen(groups: Sequence[int], whole: Sequence[bool], limit: int) -> list[bool]:
    """Returns which rows are shown, at most `limit`; rows with their tokens come first.

    Rows are chosen in whole groups, spaced evenly, with the first and the last group if two fit. If
    the only group is larger than the limit, its first rows are chosen.
    """
    of_group = [g for g, size in enumerate(groups) for _ in range(size)]
    mask = [False] * len(of_group)
    for kind in (True, False):
        rows: dict[int, list[int]] = {}
        for i, g in enumerate(of_group):
            if whole[i] == kind:
                rows.setdefault(g, []).append(i)
        for i in _spaced(list(rows.values()), limit - sum(mask)):
            mask[i] = True
    return mask


def _spaced(groups: Sequence[Sequence[int]], limit: int) -> list[int]:
    total = sum(map(len, groups))
    if total <= limit:
        return [i for group in groups for i in group]
    for number in range(max(limit * len(groups) // total, 1), 0, -1):
        places = sorted(set(np.linspace(0, len(groups) - 1, number).round().astype(int).tolist()))
        rows = [i for place in places for i in groups[place]]
        if len(rows) <= limit:
            return rows
    return rows[:limit]


def shown(run: RunRecord, number: int, keep: Sequence[bool], lexicon: str) -> Iterator[Shown]:
    """Yields the kept rollouts of a run; `number` is the run's number in the report."""
    sibling, last = 0, None
    # A run that goes on has more rows by now than were counted.
    for (file, line, row), kept in zip(_rows(run), keep, strict=False):
        key = (row["step"], row.get("id"))
        sibling = sibling + 1 if key == last else 0
        last = key
        if kept:
            yield _Row(file, line, row, lexicon, run.lexicon).shown(number, sibling)


class _Row:
    """A line of rollouts.jsonl."""

    def __init__(
        self, file: Path, number: int, row: Mapping[str, Any], lexicon: str, marked_by: str
    ) -> None:
        """Checks a line; `marked_by` is the lexicon by which the run marked epistemic tokens."""
        self._place = f"{file}:{number}"
        self._row = row
        self._lexicon = lexicon
        self._marked_by = marked_by
        pieces = self._list("pieces", None)
        self._known = pieces is not None
        if pieces is None:
            self._pieces = re.findall(r"\s*\S{1,1000}|\s+", row["completion"])
        elif all(isinstance(piece, str) for piece in pieces):
            self._pieces = pieces
        else:
            raise self._error("pieces", "not all are texts")

    def _error(self, name: str, why: str) -> UserError:
        return UserError(f"{self._place}: {name}: {why}; {REMEDY}")

    def _list(self, name: str, length: int | None) -> list | None:
        value = self._row.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._error(name, "not a list")
        if length is not None and len(value) != length:
            raise self._error(name, f"{len(value)} values for {length} tokens")
        return value

    def _numbers(self, name: str) -> np.ndarray | None:
        """Returns float64[T] with NaN for null; None if the line has no such values or no
        tokens."""
        value = self._list(name, len(self._pieces) if self._known else None)
        if value is None or not self._known:
            return None
        try:
            return np.array(value, np.float64)
        except (TypeError, ValueError):
            raise self._error(name, "not all are numbers") from None

    def _number(self, name: str) -> float | None:
        value = self._row.get(name)
        try:
            number = float("nan" if value is None else value)
        except (TypeError, ValueError):
            raise self._error(name, f"{str(value)[:40]!r} is not a number") from None
        return number if np.isfinite(number) else None

    def _text(self, name: str) -> str | None:
        value = self._row.get(name)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def _epistemic(self) -> list[int]:
        given = self._list("epistemic", None)
        if given is None or not self._known or self._marked_by != self._lexicon:
            return np.flatnonzero(epistemic.epistemic_tokens(self._pieces, self._lexicon)).tolist()
        if not all(isinstance(i, int) and 0 <= i < len(self._pieces) for i in given):
            raise self._error("epistemic", "not all are places of tokens")
        return given

    def push(self) -> tuple[list[str], np.ndarray | None]:
        """Returns the texts of the tokens, and float64[T] teacher minus student or None if
        unknown."""
        student, teacher = self._numbers("student_logprobs"), self._numbers("teacher_logprobs")
        push = None if student is None or teacher is None else teacher - student
        return self._pieces, push

    def shown(self, run: int, sibling: int) -> Shown:
        row = self._row
        student, (_, push) = self._numbers("student_logprobs"), self.push()
        marked = self._epistemic()
        correct = row.get("correct")
        counts = epistemic.count(row["completion"], self._lexicon)
        index = {
            "run": run,
            "step": row["step"],
            "id": str(row.get("id", "")),
            "sibling": sibling,
            "correct": None if correct is None else int(bool(correct)),
            "reward": self._number("reward"),
            "length": _length(row) or len(self._pieces),
            "finish": self._text("finish"),
            "push": _mean(push),
            "epistemic_push": _mean(None if push is None else push[marked]),
            "words": [x for i, n in enumerate(counts.values()) if n for x in (i, n)],
            "kept": int(self._known),
            "preview": row["completion"][:100],
        }
        detail = {
            "prompt": self._text("prompt"),
            "reprompt": self._text("reprompt"),
            "answer": self._text("answer"),
            "feedback": self._text("feedback"),
            "details": None if row.get("details") is None else json.dumps(row["details"]),
            "demonstration": self._text("demonstration"),
            "distilled": row.get("distilled"),
            "cuts": [units(piece) for piece in self._pieces],
            "student": _hundredths(student),
            "push": _hundredths(push),
            "gap": _hundredths(self._gap(student)),
            "student_entropy": _hundredths(self._numbers("student_entropy")),
            "teacher_entropy": _hundredths(self._numbers("teacher_entropy")),
            "epistemic": marked,
        }
        has_tops = self._known and any(row.get(name) is not None for name in TOPS.values())
        return Shown(
            index=index,
            text="".join(self._pieces),
            detail={k: v for k, v in detail.items() if v is not None},
            tops=self._tops if has_tops else None,
        )

    def _tops(self) -> dict[str, Any]:
        return {who: self._top(name) for who, name in TOPS.items()}

    def _gap(self, student: np.ndarray | None) -> np.ndarray | None:
        """Returns sampler minus student, or the sampler's values if the student's are unknown."""
        sampler = self._numbers("sampler_logprobs")
        return sampler if sampler is None or student is None else sampler - student

    def _top(self, name: str) -> list[list] | None:
        """Returns for each token [text, hundredths of a nat, text, ...], the likeliest first."""
        value = self._list(name, len(self._pieces))
        if value is None:
            return None
        try:
            return [
                [x for text, at in token or () for x in (str(text), _hundredth(float(at)))]
                for token in value
            ]
        except (TypeError, ValueError):
            raise self._error(name, "not lists of [text, log-probability]") from None


def units(text: str) -> int:
    """Returns the length of a text in UTF-16 code units, because JavaScript counts in these."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _mean(values: np.ndarray | None) -> int | None:
    if values is None or not np.isfinite(values).any():
        return None
    return _hundredth(float(np.mean(values[np.isfinite(values)])))


def _hundredth(value: float) -> int | None:
    return None if np.isnan(value) else round(100 * min(max(value, -1000.0), 1000.0))


def _hundredths(values: np.ndarray | None) -> list[int | None] | None:
    """Returns hundredths of a nat: None for NaN, and infinities limited to 1000 nats."""
    if values is None:
        return None
    whole = np.rint(100 * np.clip(values, -1000, 1000))
    if np.isnan(whole).any():
        return [None if np.isnan(x) else int(x) for x in whole.tolist()]
    return whole.astype(np.int64).tolist()
