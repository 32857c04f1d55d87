"""Packs held-out answers of the first and the last evaluation of each run, question by question."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdjax.analysis import epistemic
from sdjax.analysis.report import read
from sdjax.analysis.report.blocks import packed
from sdjax.analysis.report.read import REMEDY, RunRecord
from sdjax.analysis.report.rollouts import units
from sdjax.errors import UserError

QUESTIONS = 16
"""Questions in one block; the page unpacks a whole block to open one."""
ANSWERS = 4
"""Most answers to a question that an evaluation shows: right and wrong ones in turn."""
PREVIEW = 100


@dataclass(frozen=True)
class SavedEvaluation:
    """The answers of one evaluation of a run; `run` is its number in the report."""

    run: int
    step: int
    file: Path


@dataclass(kw_only=True)
class _Asked:
    """A question and how the evaluations answered it, by number: right answers, all answers."""

    set: str
    id: str
    preview: str
    size: int = 0
    right: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)

    def changed(self, evaluations: Sequence[SavedEvaluation]) -> bool:
        """Returns whether any run answers it more or less often right after than before."""
        of_run: dict[int, set[float]] = {}
        for number, right in self.right.items():
            of_run.setdefault(evaluations[number].run, set()).add(right / self.total[number])
        return any(len(shares) > 1 for shares in of_run.values())


@dataclass(frozen=True, kw_only=True)
class AnswerBlocks:
    """The answers in the form that the page reads; `blocks` are base64 texts by name."""

    index: dict[str, Any]
    blocks: dict[str, str]


def evaluations(runs: Sequence[RunRecord]) -> list[SavedEvaluation]:
    """Returns the first and the last evaluation of each run that kept its answers."""
    out = []
    for number, run in enumerate(runs):
        for file in dict.fromkeys([*run.answers[:1], *run.answers[-1:]]):
            if not file.stem.isdecimal():
                raise UserError(f"{file}: its name is not the number of a step; {REMEDY}")
            out.append(SavedEvaluation(number, int(file.stem), file))
    return out


def fit(runs: Sequence[RunRecord], lexicon: str, limit: int) -> AnswerBlocks:
    """Returns the answers to as many questions as fit in about `limit` bytes.

    Questions whose answers got better or worse in any run come first. Raises UserError with file
    and line for a line that is not an answer.
    """
    saved = evaluations(runs)
    asked = _survey(saved)
    order = sorted(asked, key=lambda key: not asked[key].changed(saved))
    budget = 8.0 * limit  # of text before it is packed; too much at first
    while True:
        sizes = itertools.accumulate(asked[key].size for key in order)
        kept = [key for key, size in zip(order, sizes, strict=True) if size <= budget]
        shown = [key for key in asked if key in set(kept)]
        made = _pack(saved, asked, shown, lexicon)
        size = sum(map(len, made.blocks.values()))
        if size <= limit or not shown:
            return made
        budget = 0.95 * limit / size * sum(asked[key].size for key in kept)


def _survey(saved: Sequence[SavedEvaluation]) -> dict[str, _Asked]:
    asked: dict[str, _Asked] = {}
    for number, evaluation in enumerate(saved):
        for key, row in _rows(evaluation):
            if key not in asked:
                preview = _said(row["messages"])[:PREVIEW]
                asked[key] = _Asked(set=row["set"], id=row["id"], preview=preview)
            one = asked[key]
            one.total[number] = one.total.get(number, 0) + 1
            one.right[number] = one.right.get(number, 0) + bool(row["correct"])
            if one.total[number] <= ANSWERS:
                one.size += len(row["completion"]) + len(str(row.get("feedback", "")))
    return asked


def _rows(evaluation: SavedEvaluation) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each answer with the key of its question: same set, id and messages."""
    for number, row in read.rows(evaluation.file):
        texts = all(isinstance(row.get(name), str) for name in ("set", "id", "completion"))
        messages = row.setdefault("messages", [])
        if not texts or "correct" not in row or not isinstance(messages, list):
            raise UserError(f"{evaluation.file}:{number}: not an answer; {REMEDY}")
        asked = json.dumps([row["set"], row["id"], messages], sort_keys=True)
        yield hashlib.sha256(asked.encode()).hexdigest(), row


def _said(messages: Sequence[Any]) -> str:
    """Returns the text of the last message, which is the question."""
    last = messages[-1] if messages else {}
    return _content(last.get("content", "") if isinstance(last, Mapping) else last)


def _content(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pack(
    saved: Sequence[SavedEvaluation],
    asked: Mapping[str, _Asked],
    shown: Sequence[str],
    lexicon: str,
) -> AnswerBlocks:
    place = {key: at for at, key in enumerate(shown)}
    rows: list[dict[str, Any]] = [{"answers": [[] for _ in saved]} for _ in shown]
    for number, evaluation in enumerate(saved):
        for key, row in _rows(evaluation):
            if key in place:
                question = rows[place[key]]
                question.setdefault("messages", [_message(one) for one in row["messages"]])
                question.setdefault("right", _content(row.get("answer", "")))
                question["answers"][number].append(row)
    for question in rows:
        question["answers"] = [
            [_answer(row, lexicon) for row in _chosen(answers)] for answers in question["answers"]
        ]
    index = {
        "evaluations": [{"run": one.run, "step": one.step} for one in saved],
        "per_block": QUESTIONS,
        **{n: [getattr(asked[key], n) for key in shown] for n in ("set", "id", "preview")},
        **{
            name: [[getattr(asked[key], name).get(n) for n in range(len(saved))] for key in shown]
            for name in ("right", "total")
        },
        "note": _note(asked, shown),
    }
    blocks = {
        f"answers-{start // QUESTIONS}": packed(rows[start : start + QUESTIONS])
        for start in range(0, len(rows), QUESTIONS)
    }
    return AnswerBlocks(index=index, blocks=blocks)


def _note(asked: Mapping[str, _Asked], shown: Sequence[str]) -> str:
    parts = []
    if len(shown) < len(asked):
        parts.append(
            f"{len(shown):,} of {len(asked):,} questions are shown, those that got better or worse "
            "first"
        )
    if any(n > ANSWERS for key in shown for n in asked[key].total.values()):
        parts.append(f"{ANSWERS} answers to a question are shown, right and wrong ones in turn")
    return "; ".join(parts)


def _chosen(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns at most ANSWERS of the answers to a question, in their order."""
    if len(answers) <= ANSWERS:
        return list(answers)
    right = [i for i, row in enumerate(answers) if row["correct"]]
    wrong = [i for i, row in enumerate(answers) if not row["correct"]]
    turns = itertools.zip_longest(right, wrong)
    kept = [i for pair in turns for i in pair if i is not None][:ANSWERS]
    return [answers[i] for i in sorted(kept)]


def _message(message: Any) -> list[str]:
    """Returns the role and the text of a message."""
    if not isinstance(message, Mapping):
        return ["", _content(message)]
    return [_content(message.get("role", "")), _content(message.get("content", ""))]


def _answer(row: Mapping[str, Any], lexicon: str) -> dict[str, Any]:
    pieces = re.findall(r"\s+|\S+", row["completion"])
    marks, at = [], 0
    for piece, marked in zip(pieces, epistemic.epistemic_tokens(pieces, lexicon), strict=True):
        if marked and not piece.isspace():
            marks.append([at, units(piece)])
        at += units(piece)
    details = row.get("details")
    shown = {
        "text": row["completion"],
        "marks": marks,
        "correct": int(bool(row["correct"])),
        "tokens": row["tokens"] if isinstance(row.get("tokens"), int) else None,
        "finish": _content(row["finish"]) if row.get("finish") else None,
        "feedback": _content(row["feedback"]) if row.get("feedback") else None,
        "details": json.dumps(details) if details else None,
    }
    return {name: value for name, value in shown.items() if value is not None}
