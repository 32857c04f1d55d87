"""GPQA: rows of its schema, made up, because its authors ask not to publish questions."""

import csv
import json
import random

import pytest

from sdjax import config, tasks
from sdjax.errors import UserError
from sdjax.tasks.gpqa import GPQA, INSTRUCTION

COLUMNS = (
    *("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2"),
    *("Incorrect Answer 3", "Explanation", "Subdomain", "Canary String"),
)


def made(number):
    """Returns a row with line ends, commas and quotes in its texts."""
    return {
        "Question": f'How much is {number}, "plus"\n\n{number}?',
        "Correct Answer": f"{2 * number}\n",
        **{f"Incorrect Answer {i}": f" {2 * number + i}, or so" for i in (1, 2, 3)},
        **{"Explanation": "It is.", "Subdomain": "Sums", "Canary String": ""},
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "questions.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(made(n) for n in range(1, 41))
    return path


def load(file, **changes):
    return tasks.load(GPQA(test=str(file), **changes), config.Data())


def test_the_prompt_is_that_of_simple_evals(file):
    task = load(file)
    one = task.held_out[0]
    (message,) = one.messages
    instruction, question, more, listed = message["content"].split("\n\n")
    assert instruction == INSTRUCTION and question + more == 'How much is 1, "plus"1?'
    lines = listed.splitlines()
    assert [line[:3] for line in lines] == ["A) ", "B) ", "C) ", "D) "]
    assert sorted(line[3:] for line in lines) == ["2", "3, or so", "4, or so", "5, or so"]
    assert lines["ABCD".index(one.answer)] == f"{one.answer}) 2"
    assert not task.train and len(task.held_out) == 40 and task.skipped == ()


def test_the_answer_is_the_letter_of_the_correct_option_and_all_letters_occur(file):
    examples = load(file).held_out
    for n, one in enumerate(examples, 1):
        assert f"\n{one.answer}) {2 * n}\n" in one.messages[0]["content"] + "\n"
    assert {one.answer for one in examples} == set("ABCD")


def test_the_order_is_simple_evals_first_round_at_seed_0_and_another_at_seed_1(file):
    # gpqa_eval.py of simple-evals draws rng.sample(range(4), 4) for one row after the other.
    rng = random.Random(0)
    expected = ["ABCD"[rng.sample(range(4), 4).index(0)] for _ in range(40)]
    assert [one.answer for one in load(file).held_out] == expected
    assert [one.answer for one in load(file, seed=1).held_out] != expected
    assert load(file, held_out=5).held_out == load(file).held_out[:5]


def test_answers_of_the_prescribed_form_are_graded(file):
    task = load(file)
    one = task.held_out[0]
    wrong = "ABCD".replace(one.answer, "")[0]
    for text in (f"So.\n\nAnswer: {one.answer}", f"**Answer: ${one.answer}$**"):
        assert task.grade(text, one, truncated=False).correct, text
    for text in (f"Answer: {wrong}", f"{one.answer} or {wrong}", ""):
        assert not task.grade(text, one, truncated=False).correct, text


def test_rows_of_other_files_are_read_and_a_missing_column_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(made(n)) + "\n" for n in (1, 2)))
    assert len(load(file).held_out) == 2
    row = made(1)
    del row["Incorrect Answer 2"]
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl:1: field 'Incorrect Answer 2' is missing"):
        load(file)


def test_an_unknown_set_is_one_line():
    with pytest.raises(UserError, match="neither a file nor one of diamond, main, extended"):
        load("diamonds")
