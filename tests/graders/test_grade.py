"""`graders.grade`, the one call: every rule of the table, functions, options and mistakes."""

import doctest
import json
import re
import subprocess
import sys
from functools import partial

import marks
import pytest
from paths import ROOT

from sdjax import graders
from sdjax.errors import UserError
from sdjax.graders import grade, grader, reasoning_gym_rule, tool_calls
from sdjax.graders.answer import choice, expression, number
from sdjax.graders.code import grade_code
from sdjax.graders.math import grade_math, paper_grade
from sdjax.graders.votes import ComparingGrader
from sdjax.graders.workers.grade_batch import Attempt, each
from sdjax.records import Grade

GENERATOR = {"name": "spell_backward", "options": {"seed": 0, "size": 10}}


def golden(file: str, kind: str | None = None) -> list[Attempt]:
    """Returns the attempts of a golden file, of rewards.jsonl those of one kind."""
    lines = (ROOT / "tests" / "golden" / file).read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("kind") == kind]
    # A program that runs out of time is wrong by every rule, and slow.
    rows = [row for row in rows if not (kind == "code" and row["expected"]["timed_out"])]
    return [
        Attempt(r["response"], r["ground_truth" if kind else "gold"], r.get("truncated", False))
        for r in rows
    ]


def spelled() -> list[Attempt]:
    """Returns a right and a wrong answer to each of three questions of a generator."""
    items = reasoning_gym_rule.questions(**GENERATOR, start=0, count=3)
    return [
        Attempt(f"<answer>{text}</answer>", answer, id=str(index))
        for index, (_, answer) in enumerate(items)
        for text in (answer, "zzz")
    ]


NUMBERS = [Attempt("It is 8.", "8"), Attempt("8 or 9", "8"), Attempt("It is 8", "8", True)]
EXPRESSIONS = [Attempt("3 * 4 + 5", "3 4 5 = 17"), Attempt("3 + 4 + 5", "3 4 5 = 17")]
# For each rule: its rows, the grader that its own module makes, and its options. Rules that work in
# other processes get every n-th row; test_graders_golden grades all rows.
CASES = {
    "number": (lambda: NUMBERS, lambda: each(number.grade), {}),
    "expression": (lambda: EXPRESSIONS, lambda: each(expression.grade), {}),
    "choice": (partial(golden, "rewards.jsonl", "mcq"), lambda: each(choice.grade), {}),
    "choice_reference": (
        partial(golden, "rewards.jsonl", "mcq"),
        lambda: each(choice.grade_reference),
        {},
    ),
    "tooluse": (
        partial(golden, "rewards.jsonl", "tooluse"),
        lambda: each(partial(tool_calls.grade, reveal=True)),
        {"reveal": True},
    ),
    "tooluse_reference": (
        partial(golden, "rewards.jsonl", "tooluse"),
        lambda: each(tool_calls.grade_reference),
        {},
    ),
    "math": (
        lambda: golden("rewards.jsonl", "math")[::5],
        lambda: ComparingGrader(grade_math.ours()),
        {},
    ),
    "math_reference": (
        lambda: golden("rewards.jsonl", "math")[::5],
        lambda: ComparingGrader(grade_math.reference(), "pred"),
        {},
    ),
    "math_eval_reference": (
        lambda: golden("eval_grader.jsonl")[::20],
        lambda: ComparingGrader(paper_grade.reference(), "extracted"),
        {},
    ),
    "code": (lambda: golden("rewards.jsonl", "code")[::18], grade_code.grader, {"parallel": 1}),
    "code_reference": (
        lambda: golden("rewards.jsonl", "code")[::18],
        partial(grade_code.grader, reference=True),
        {},
    ),
    "reasoning_gym": (spelled, lambda: reasoning_gym_rule.grader(**GENERATOR), GENERATOR),
}


def test_every_rule_of_the_table_has_a_case():
    assert CASES.keys() == graders.RULES.keys()


HEAVY = {"math", "math_reference", "math_eval_reference", "code_reference", "reasoning_gym"}


@pytest.mark.parametrize("rule", marks.heavy_but(CASES.keys() - HEAVY, CASES))
def test_grade_gives_what_the_rules_own_function_gives(rule, request):
    if rule.startswith("code"):
        request.getfixturevalue("sandboxed")
    rows, own, options = CASES[rule]
    attempts = rows()
    found = [
        grade(rule, a.text, a.answer, truncated=a.truncated, id=a.id, **options) for a in attempts
    ]
    assert found == own()(attempts)
    assert {g.correct for g in found} == {True, False}


def test_a_function_is_a_rule_and_gets_its_options():
    def ends(text, answer, *, truncated, mark=""):
        good = text.endswith(answer + mark) and not truncated
        return Grade(reward=float(good), correct=good)

    assert grade(ends, "so: 8", "8").correct
    assert not grade(ends, "so: 8", "8", truncated=True).correct
    assert grade(ends, "so: 8!", "8", mark="!").correct
    assert [g.correct for g in grader(ends)([Attempt("8", "8"), Attempt("9", "8")])] == [
        True,
        False,
    ]


def test_a_function_that_returns_no_grade_is_named():
    def half(text, answer, *, truncated):
        return 0.5

    with pytest.raises(UserError, match=r"the grader half returned float: it must return a"):
        grade(half, "8", "8")


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(UserError) as error:
        grade("numbr", "8", "8")
    assert "no rule 'numbr'" in str(error.value) and "\n" not in str(error.value)
    assert all(name in str(error.value) for name in graders.RULES)


def test_importing_graders_loads_neither_arrays_nor_sympy():
    script = (
        "import sys, sdjax.graders\nprint(sorted({'jax', 'numpy', 'sympy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("file", ["docs/graders.md", "sdjax/graders/__init__.py"])
def test_the_examples_of_the_docs_give_what_they_show(file):
    text = (ROOT / file).read_text("utf-8")
    text = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) or text
    test = doctest.DocTestParser().get_doctest(text, {}, file, file, 0)
    results = doctest.DocTestRunner(verbose=False).run(test)
    assert results.attempted > 0 and results.failed == 0
