"""Held-out answers of the first and the last evaluation are packed question by question."""

import base64
import gzip
import json

import numpy as np
import report_runs

from sdjax.analysis.report import held_out_answers, read

BEFORE = {"up": [False], "down": [True], "right": [True], "wrong": [False]}
AFTER = {"up": [True], "down": [False], "right": [True], "wrong": [False]}


def runs(folder, *answered):
    """Returns the runs of which these are the held-out answers by step."""
    made = [
        report_runs.write(folder / f"run{number}", steps=9, rollouts=[], answered=answers)
        for number, answers in enumerate(answered)
    ]
    return read.runs([str(run) for run in made])


def rows(made):
    """Returns the questions in the blocks, in order."""
    names = sorted(made.blocks, key=lambda name: int(name.partition("-")[2]))
    packed = (gzip.decompress(base64.b64decode(made.blocks[name])) for name in names)
    return [row for text in packed for row in json.loads(text)]


def test_every_question_has_its_answers_of_the_first_and_the_last_evaluation(tmp_path):
    answered = {
        0: report_runs.answers(BEFORE, "hmm,"),
        5: report_runs.answers(BEFORE, "between"),
        9: report_runs.answers(AFTER),
    }
    found = runs(tmp_path, answered)
    made = held_out_answers.fit(found, "paper", 10**6)
    index = made.index
    assert index["evaluations"] == [{"run": 0, "step": 0}, {"run": 0, "step": 9}]
    assert index["id"] == list(BEFORE) and index["note"] == ""
    assert index["preview"][0] == "What is up?"
    assert index["right"] == [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert index["total"] == [[1, 1]] * 4
    (first, *_) = rows(made)
    assert first["messages"] == [["user", "What is up?"]] and first["right"] == "right up"
    before, after = (one[0] for one in first["answers"])
    assert before["text"] == "hmm, wait, it is wrong up" and before["feedback"] == "up is wrong"
    assert [before["text"][at : at + n] for at, n in before["marks"]] == ["hmm,", "wait,"]
    assert (after["correct"], after["tokens"], after["finish"]) == (1, 9, "stop")


def test_places_in_a_text_are_counted_as_the_page_counts_them(tmp_path):
    found = runs(tmp_path, {0: report_runs.answers({"q": [True]}, "\U0001f642 ok")})
    (row,) = rows(held_out_answers.fit(found, "paper", 10**6))
    (answer,) = row["answers"][0]
    ((at, length),) = answer["marks"]
    text = answer["text"].encode("utf-16-le")
    assert text[2 * at : 2 * (at + length)].decode("utf-16-le") == "wait,"


def test_questions_that_got_better_or_worse_come_first_if_not_all_fit(tmp_path):
    graded = {f"q{i:03}": [i % 5 == 0] for i in range(100)}
    later = graded | {"q051": [True], "q055": [False]}
    rng = np.random.default_rng(0)
    texts = [report_runs.answers(of) for of in (graded, later)]
    for row in texts[0] + texts[1]:
        row["completion"] = "".join(report_runs.completion(rng, 300))
    found = runs(tmp_path, {0: texts[0], 9: texts[1]})
    whole = held_out_answers.fit(found, "paper", 10**6)
    size = sum(map(len, whole.blocks.values()))
    assert len(whole.index["id"]) == 100
    some = held_out_answers.fit(found, "paper", size // 4)
    shown = some.index["id"]
    assert {"q051", "q055"} < set(shown) and shown == sorted(shown) and 5 < len(shown) < 30
    assert sum(map(len, some.blocks.values())) <= size // 4
    assert f"{len(shown)} of 100 questions are shown" in some.index["note"]
    assert held_out_answers.fit(found, "paper", 10).index["id"] == []


def test_of_many_answers_to_a_question_right_and_wrong_ones_are_shown(tmp_path):
    graded = {"q": [True] * 10 + [False] + [True] * 5}
    found = runs(tmp_path, {0: report_runs.answers(graded)})
    made = held_out_answers.fit(found, "paper", 10**6)
    assert (made.index["right"], made.index["total"]) == ([[15]], [[16]])
    (answers,) = rows(made)[0]["answers"]
    assert [one["correct"] for one in answers] == [1, 1, 1, 0]
    assert "4 answers to a question are shown" in made.index["note"]


def test_runs_share_the_questions_that_they_have_in_common(tmp_path):
    other = report_runs.answers({"up": [True]}) + report_runs.answers(
        {"right": [True]}, messages=[{"role": "user", "content": "Another question"}]
    )
    found = runs(
        tmp_path, {0: report_runs.answers(BEFORE), 9: report_runs.answers(AFTER)}, {9: other}
    )
    index = held_out_answers.fit(found, "paper", 10**6).index
    assert [one["run"] for one in index["evaluations"]] == [0, 0, 1]
    assert index["id"] == [*BEFORE, "right"]
    assert index["total"] == [[1, 1, 1], [1, 1, None], [1, 1, None], [1, 1, None], [None, None, 1]]


def test_runs_without_answers_give_none(tmp_path):
    made = held_out_answers.fit(runs(tmp_path, {}), "paper", 10**6)
    assert made.index["id"] == [] and made.blocks == {}
