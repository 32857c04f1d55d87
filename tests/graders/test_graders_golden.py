"""The references' graders return what the papers' code returned, and ours differ where listed."""

import json
import sys

import pytest
from paths import GOLDEN

from sdjax.graders import tool_calls
from sdjax.graders.answer import choice
from sdjax.graders.code import grade_code
from sdjax.graders.math import grade_math, paper_grade
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.tasks.math import prompt


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (GOLDEN / name).read_text("utf-8").splitlines()]


def rewards(kind: str) -> list[dict]:
    return [row for row in rows("rewards.jsonl") if row["kind"] == kind]


def attempts(given: list[dict]) -> list[Attempt]:
    return [
        Attempt(r["response"], r.get("ground_truth", r.get("gold")), r.get("truncated", False))
        for r in given
    ]


@pytest.mark.heavy
def test_math_reference_gives_the_papers_reward_and_all_that_comes_with_it():
    given = rewards("math")
    for row, grade in zip(given, grade_math.reference()(attempts(given)), strict=True):
        got = {"score": grade.reward, "acc": float(grade.correct), "feedback": grade.feedback}
        details = {name: v for name, v in grade.details.items() if name != "prediction"}
        assert got | details == row["expected"], row["id"]


@pytest.mark.heavy
def test_math_eval_reference_gives_the_papers_evaluation():
    given = rows("eval_grader.jsonl")
    for row, grade in zip(given, paper_grade.reference()(attempts(given)), strict=True):
        assert grade.details["extracted"] == row["extracted"], row["id"]
        assert grade.details["stripped"] == row["stripped_extracted"], row["id"]
        assert paper_grade.strip(row["gold"]) == row["stripped_gold"], row["id"]
        assert grade.correct == row["is_correct"], row["id"]


def test_choice_reference_gives_the_papers_reward_and_its_inverted_format_flag():
    for row in rewards("mcq"):
        grade = choice.grade_reference(row["response"], row["ground_truth"])
        got = {
            "score": grade.reward,
            "acc": float(grade.correct),
            "pred": grade.details["prediction"],
            "incorrect_format": int(grade.details["incorrect_format"]),
            "feedback": grade.feedback,
        }
        assert got == row["expected"], row["id"]


def test_tooluse_reference_gives_the_papers_reward_and_feedback():
    for row in rewards("tooluse"):
        grade = tool_calls.grade_reference(row["response"], row["ground_truth"])
        got = {"score": grade.reward, "acc": float(grade.correct), "feedback": grade.feedback}
        details = {name: v for name, v in grade.details.items() if name != "prediction"}
        assert got | details == row["expected"], row["id"]


@pytest.mark.heavy
def test_code_reference_gives_the_papers_reward_and_feedback(sandboxed):
    given = rewards("code")
    for row, grade in zip(given, grade_code.grader(reference=True)(attempts(given)), strict=True):
        got = {"score": grade.reward, "feedback": grade.feedback} | grade.details
        expected = row["expected"]
        if row.get("version_sensitive") and sys.version_info[:2] != (3, 11):
            # Messages of another Python; the first line names the same exception.
            got["feedback"], expected["feedback"] = (
                text["feedback"].split(":")[0] for text in (got, expected)
            )
            got["pred"] = expected["pred"]
        assert got == expected, row["id"]


def test_dapo_questions_are_rewritten_as_the_paper_does():
    for row in rows("dapo_prompts.jsonl"):
        ((before,), (after,)) = row["before"], row["after"]
        assert prompt(before["content"]) == after["content"]


def listed(reference: str) -> dict[str, bool]:
    """Returns the verdict of ours on every row that differences.json lists for a reference.

    An entry of the file is {"ours": "right" or "wrong", "why": text, "rows": ids}. docs/graders.md
    states the counts of rows.
    """
    entries = json.loads((GOLDEN / "differences.json").read_text("utf-8"))[reference]
    return {row: entry["ours"] == "right" for entry in entries for row in entry["rows"]}


def differing(given, grades, expected) -> dict[str, bool]:
    return {
        row["id"]: grade.correct
        for row, grade in zip(given, grades, strict=True)
        if grade.correct != expected(row)
    }


def reward(row: dict) -> bool:
    return row["expected"]["score"] == 1


@pytest.mark.heavy
def test_math_differs_from_its_references_where_listed():
    given = rewards("math")
    grades = grade_math.ours()(attempts(given))
    assert differing(given, grades, reward) == listed("math_reference")
    given = rows("eval_grader.jsonl")
    grades = grade_math.ours()(attempts(given))
    assert differing(given, grades, lambda r: r["is_correct"]) == listed("math_eval_reference")


@pytest.mark.parametrize(
    ("kind", "reference", "module"),
    [("mcq", "choice_reference", choice), ("tooluse", "tooluse_reference", tool_calls)],
)
def test_choice_and_tooluse_differ_where_listed(kind, reference, module):
    given = rewards(kind)
    grades = [
        module.grade(r["response"], r["ground_truth"], truncated=r["truncated"]) for r in given
    ]
    assert differing(given, grades, reward) == listed(reference)


@pytest.mark.heavy
def test_code_differs_from_its_reference_where_listed(sandboxed):
    # Programs that run out of time are wrong for both, and slow to find so.
    given = [row for row in rewards("code") if not row["expected"]["timed_out"]]
    grades = grade_code.grader()(attempts(given))
    assert differing(given, grades, reward) == listed("code_reference")
