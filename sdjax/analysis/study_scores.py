"""Computes the results of a study from its answers: the paper's Table 1, words, trajectories.

Answers are rows in the form that an evaluation writes. The k answers of a problem follow each
other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.analysis import epistemic
from sdjax.analysis.scores import Scores

StudyRow = Mapping[str, Any]


def by_problem(rows: Sequence[StudyRow]) -> dict[str, list[StudyRow]]:
    """Returns the answers of each problem, by its id."""
    groups = itertools.groupby(rows, key=lambda row: row["id"])
    return {name: list(group) for name, group in groups}


def solved(rows: Sequence[StudyRow]) -> int:
    """Returns the number of correct answers."""
    return sum(bool(row["correct"]) for row in rows)


def best(rows: Sequence[StudyRow]) -> StudyRow:
    """Returns the first correct answer, or the first answer if none is correct, as the paper's code
    does."""
    return next((row for row in rows if row["correct"]), rows[0])


def to_markdown(scores: Mapping[str, Scores]) -> str:
    """Returns Table 1 of arXiv:2603.24472 with one row per condition, and further rates and
    lengths."""
    some = next(iter(scores.values()))
    k = some.accuracy.k
    columns = (
        *("condition", f"score (avg@{k})", f"{100 * some.accuracy.level:g}% interval"),
        *("mean tokens", "thinking tokens", "truncated, %"),
        *("epistemic words a response", "per 1,000 tokens", "whole words a response"),
    )
    rows = []
    for name, s in scores.items():
        score = s.accuracy.estimates[f"avg@{k}"]
        rows.append(
            (
                *(name, f"{score.value:.2f}", f"{score.low:.2f} to {score.high:.2f}"),
                *(f"{s.lengths.mean:.1f}", f"{s.thinking.mean:.1f}"),
                *(f"{100 * s.lengths.truncated:.1f}", f"{s.epistemic.per_response:.2f}"),
                *(f"{s.epistemic.per_1000_tokens:.2f}", f"{s.epistemic_word.per_response:.2f}"),
            )
        )
    return _table(columns, rows)


def words_to_markdown(scores: Mapping[str, Scores]) -> str:
    """Returns a table of each epistemic word's rate per response, one column per condition."""
    words = list(next(iter(scores.values())).epistemic.words)

    def rate(s: Scores, word: str) -> str:
        return f"{s.epistemic.words[word] / s.lengths.completions:.3f}"

    rows = [(word, *(rate(s, word) for s in scores.values())) for word in words]
    return _table(("a response", *scores), rows)


def histogram_to_markdown(counts: Mapping[int, int]) -> str:
    """Returns a table of how many problems were solved how often."""
    rows = [("problems", *(str(counts.get(n, 0)) for n in counts))]
    return _table(("solved", *map(str, counts)), rows)


def histogram(collected: Mapping[str, Sequence[StudyRow]], k: int) -> dict[int, int]:
    """Returns the number of problems solved 0, 1, ... k times."""
    found = Counter(solved(rows) for rows in collected.values())
    return {n: found.get(n, 0) for n in range(k + 1)}


def trajectories(
    collected: Mapping[str, Sequence[StudyRow]],
    conditions: Mapping[str, Mapping[str, Sequence[StudyRow]]],
    shown: Mapping[str, Mapping[str, str]],
    chain: Sequence[str],
    lexicon: str = "paper",
) -> Iterator[dict[str, Any]]:
    """Yields one record per problem with its results under all conditions.

    `trend` compares both ends of the `chain` by correct answers, like the paper's report. ALL: all
    are correct at its end. UP, DOWN: more or fewer are correct. NONE: none is correct at either
    end. "-": anything else.

    Args:
      collected: answers of each problem when it was collected.
      conditions: answers of each problem under each condition.
      shown: solution that each condition showed for each problem.
      chain: names of the chain's conditions, in order.
      lexicon: mode of sdjax.analysis.epistemic.
    """
    for name, rows in collected.items():
        first = rows[0]
        line: dict[str, Any] = {
            "id": name,
            "messages": first["messages"],
            "answer": first["answer"],
            "solved": solved(rows),
            "of": len(rows),
        }
        ends = [conditions[c][name] for c in chain if name in conditions[c]]
        if ends:
            line["trend"] = _trend(ends[0], ends[-1])
            tokens = [float(np.mean([row["tokens"] for row in end])) for end in ends]
            line["tokens_change"] = tokens[-1] - tokens[0]
        line["conditions"] = {
            c: _figures(answers[name], lexicon) | {"shown": shown.get(c, {}).get(name)}
            for c, answers in conditions.items()
            if name in answers
        }
        yield line


def _figures(rows: Sequence[StudyRow], lexicon: str) -> dict[str, Any]:
    tokens = [row["tokens"] for row in rows]
    words = epistemic.summarise([row["completion"] for row in rows], tokens, lexicon)
    return {
        "correct": solved(rows),
        "of": len(rows),
        "tokens": float(np.mean(tokens)),
        "epistemic": words.per_response,
        "predictions": [row["details"].get("prediction") for row in rows],
    }


def _trend(first: Sequence[StudyRow], last: Sequence[StudyRow]) -> str:
    before, after = solved(first), solved(last)
    if after == len(last):
        return "ALL"
    if after != before:
        return "UP" if after > before else "DOWN"
    return "-" if after else "NONE"


def data_sets(
    unguided: Mapping[str, Sequence[StudyRow]], guided: Mapping[str, Sequence[StudyRow]], limit: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns D_ug and D_sg of arXiv:2603.24472 section 4: conversations with correct answers.

    Both hold equally many answers of each problem, at most `limit` (0: any number). They are the
    first answers that are correct and ended with a stop token. The question in both is the plain
    one, without a solution.
    """
    ug: list[dict[str, Any]] = []
    sg: list[dict[str, Any]] = []
    for name, rows in unguided.items():
        without, with_solution = _right(rows), _right(guided.get(name, ()))
        number = min(len(without), len(with_solution), limit or len(without))
        for data, right in ((ug, without), (sg, with_solution)):
            data += [_conversation(rows[0], row) for row in right[:number]]
    return ug, sg


def _right(rows: Sequence[StudyRow]) -> list[StudyRow]:
    return [row for row in rows if row["correct"] and row["finish"] == "stop"]


def _conversation(problem: StudyRow, row: StudyRow) -> dict[str, Any]:
    turn = {"role": "assistant", "content": row["completion"]}
    return {"id": problem["id"], "messages": [*problem["messages"], turn]}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
