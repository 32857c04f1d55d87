"""What our graders accept and refuse."""

import json
import time

import pytest
from paths import GOLDEN

from sdjax.errors import UserError
from sdjax.graders import tool_calls
from sdjax.graders.answer import choice, number, regions
from sdjax.graders.code import grade_code, sandbox
from sdjax.graders.math import equality
from sdjax.graders.math import grade_math as math_rules
from sdjax.graders.math.symbolic import same
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.records import Grade


@pytest.fixture(scope="module")
def grade_math():
    grader = math_rules.ours()

    def grade(text: str, answer: str, truncated: bool = False) -> Grade:
        return grader([Attempt(text, answer, truncated)])[0]

    return grade


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} but \boxed{4", "3"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"{ \boxed{6}", "6"),
        (r"\fbox{7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{a \} b}", r"a \} b"),
        ("no box", None),
        (r"\boxed{", None),
        (r"\\boxed{8}", None),
    ],
)
def test_the_last_balanced_box_is_found(text, box):
    assert regions.last_boxed(text) == box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5 + 3 = 8.", "8"),
        ("The answer is 12.", "12"),
        (r"\boxed{12}", "12"),
        (r"1 and 2, so \boxed{x = 12} 99", "12"),
        ("It is 1,234 in all", "1234"),
        (r"1{,}234", "1234"),
        ("0 - 5 = -5", "-5"),
        ("= \u22125", "-5"),
        ("3-5 = 8", "8"),
        ("10-5", "5"),
        ("8.0", "8"),
        ("8.50 or so", "8.5"),
        ("<think>7</think> It is 8", "8"),
        ("<answer>\n**8**\n</answer> 9", "8"),
        ("17,92", "92"),
        ("-0", "0"),
    ],
)
def test_a_number_is_read_where_it_is_stated(text, answer):
    assert number.grade(text, answer).correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "8"),
        ("eight", "8"),
        ("8 or 9", "8"),
        (r"\boxed{8, 9}", "8"),
        (r"\boxed{8, 9}", "9"),
        ("<answer>7 8</answer>", "8"),
        ("5 - 3", "-3"),
        ("18", "8"),
        ("8.5", "8"),
        ("0.8", "8"),
        ("<answer></answer> 8", "8"),
    ],
)
def test_a_number_is_not_read_where_another_or_none_is_stated(text, answer):
    assert not number.grade(text, answer).correct


def test_a_cut_off_number_counts_only_in_a_tag_or_box():
    cut = number.grade("5 + 3 = 8", "8", truncated=True)
    assert not cut.correct and cut.details["truncated"] and "cut off" in cut.feedback
    assert number.grade(r"\boxed{8} and then", "8", truncated=True).correct


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>\nA\n</answer>", "A"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>C. carbon</answer>", "C"),
        ("<answer>A: 0.8</answer>", "A"),
        ("A or B? <answer>b</answer>", "B"),
        (r"<answer>\boxed{\text{D}}</answer>", "D"),
        ("The correct answer is **B: 1.4**.", "B"),
        ("Answer: D", "D"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("So I choose\n(C)", "C"),
        ("<think>answer is A</think>The answer is B.", "B"),
        ("<answer>A or B</answer>", None),
        ("<answer>A, B, C, D</answer>", None),
        ("the answer is A or B", None),
        ("The answer is a matter of taste", None),
        ("<answer></answer>", None),
        ("A", "A"),
        ("", None),
    ],
)
def test_one_letter_is_chosen(text, letter):
    assert choice.predicted(text, truncated=False) == letter


def test_a_cut_off_choice_counts_only_in_a_tag_or_box():
    assert choice.predicted("The answer is B", truncated=True) is None
    assert choice.predicted("<answer>B</answer>", truncated=True) == "B"


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        (r"x = 5, 6", "6"),
        ("5 or 6", "6"),
        (r"3\sqrt{13}", "3"),
        ("52", "52_8"),
        ("(3,4)", "(3,4]"),
        ("(4,3)", "(3,4)"),
        ("1", "1,-2"),
        ("5", "500"),
        ("500", "5"),
        ("640!", "640"),
        ("12", "1,2"),
        ("1 2", "12"),
        (r"\frac{1}{3}", "0.333"),
        ("0.333", r"\frac{1}{3}"),
        ("-5", "5"),
        (r"\text{no}", r"\text{yes}"),
        ("x", "y"),
        ("x^2", "x^3"),
        ("x^2", "y^2"),
        ("x+y", "20"),
        (r"\frac{3\sqrt{3}}{4}", "20"),
        ("", "0"),
        (" ", "0"),
        (r"\text{}", "0"),
        (r"\infty", r"-\infty"),
        ("None", "0"),
        ("5 cm, 6 cm", "5"),
    ],
)
def test_answers_that_are_not_the_same_are_told_apart(prediction, gold):
    assert not same(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        (r"640\text{ cm}^2", "640"),
        ("12 miles per hour", "12"),
        (r"\$1{,}000.", "1000"),
        (r"10,\!080", "10080"),
        ("50%", "50"),
        (r"50\%", r"\frac12"),
        ("x=640", "640"),
        (r"\dfrac{4}{2}", "2"),
        (r"1\frac{4}{5}", "1.8"),
        ("0.333333", r"\frac{1}{3}"),
        (r"\{1, 2\}", "2, 1"),
        (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"1\pm\sqrt{2}", r"1-\sqrt2, 1+\sqrt2"),
        (r"\begin{bmatrix}1\\ 2\end{bmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\text{(C)}", "c"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"),
        (r"\sin^2 x", r"1-\cos^2 x"),
        (r"\log(8)", r"3\log(2)"),
        ("y-2x=3", "y=2x+3"),
        (r"x \le 0", r"(-\infty, 0]"),
        ("\u202e640\u202c", "640"),
        ("６４０", "640"),
    ],
)
def test_answers_that_are_the_same_are_recognised(prediction, gold):
    assert same(prediction, gold)


@pytest.fixture(scope="module")
def math500():
    """Returns the gold answers of MATH-500."""
    return json.loads((GOLDEN / "data" / "math" / "math500_answers.json").read_text("utf-8"))


def test_every_gold_answer_of_math500_equals_itself(grade_math, math500):
    assert all(grade_math(rf"so \boxed{{{gold}}}.", gold).correct for gold in math500)


@pytest.mark.heavy
def test_a_core_grades_150_wrong_answers_of_math500_a_second(math500):
    """Every second answer, another one; half of them for sympy to tell from its gold.

    CPU time is what other programs do not change; handing a call to a worker takes 0.1 ms of it.
    """
    golds = [gold for gold in math500 if "text" not in gold][::2]
    seconds = []
    for wrong in ("+1", "+2", "+3"):
        start = time.process_time()
        for gold in golds:
            verdict = math_rules.quick(gold + wrong, gold)
            assert not (same(gold + wrong, gold) if verdict is None else verdict)
        seconds.append(time.process_time() - start)
    assert len(golds) / min(seconds) > 150


def test_a_cut_off_answer_in_a_box_is_graded_and_flagged(grade_math):
    grade = grade_math(r"\boxed{5} and now", "5", truncated=True)
    assert grade.correct and grade.details["truncated"]
    grade = grade_math(r"so it is \boxed{5", "5", truncated=True)
    assert not grade.correct and "cut off" in grade.feedback


def test_plain_numbers_are_graded_2000_a_second_and_need_no_worker():
    grader = math_rules.ours()
    attempts = [
        Attempt("so, step by step, " * 100 + rf"\boxed{{{i}}}", str(i + i % 2)) for i in range(4000)
    ]
    start = time.process_time()
    grades = grader(attempts)
    elapsed = time.process_time() - start
    assert sum(g.correct for g in grades) == 2000
    assert elapsed < 2.0
    assert all(equality.same(str(i), str(i), equality.unsure) for i in range(10))


GOLD = json.dumps(
    [
        {"Action": "find", "Action_Input": '{"q": {"deep": [1, "}"]}}'},
        {"Action": "send", "Action_Input": '{"n": 3, "yes": true}'},
    ]
)
FIND = 'Action: find\nAction Input: {"q": {"deep": [1, "}"]}}\n'
SEND = 'Thought: then\nAction: send\nAction Input: {"yes": true, "n": 3.0}\n'


@pytest.mark.parametrize("text", [FIND + SEND, SEND + FIND, f"<think>{SEND}</think>{FIND}{SEND}"])
def test_tool_calls_are_matched_one_by_one_in_any_order(text):
    assert tool_calls.grade(text, GOLD).correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        FIND,
        FIND + FIND,
        FIND + SEND + SEND,
        FIND + SEND.replace("3.0", "4"),
        FIND + SEND.replace("true", "1"),
        FIND.replace("find", "send") + SEND.replace("send", "find"),
        FIND + SEND.replace("}", ""),
    ],
)
def test_other_tool_calls_are_wrong_and_feedback_does_not_tell_the_expected_ones(text):
    grade = tool_calls.grade(text, GOLD)
    assert not grade.correct and grade.feedback
    assert "Expected" not in grade.feedback
    assert "deep" not in grade.feedback or "deep" in text
    assert "deep" in tool_calls.grade(text, GOLD, reveal=True).feedback


def cases(kind: str, expected: dict[str, str], name: str = "") -> str:
    return json.dumps(
        {
            "testtype": kind,
            "fn_name": name,
            "inputs": list(expected),
            "outputs": list(expected.values()),
            "time_limit": 5,
        }
    )


PASSING = {
    "floats": ("print(float(input()) / 2)", cases("stdin", {"4\n": "2", "3\n": "1.5"})),
    "a method": (
        "class Solution:\n    def f(self, a, b): return [a[0], b]",
        cases("functional", {'[1, 2]\n"x y"': '[1.0, "x y"]'}, "f"),
    ),
    "a tuple": (
        "def f(x):\n    return (x, {'a': None})",
        cases("functional", {"1": '[1, {"a": null}]'}, "f"),
    ),
    "numpy and exit": (
        "import numpy, sys\nprint(numpy.arange(4).sum())\nsys.exit()",
        cases("stdin", {"": "6"}),
    ),
    "asserts": ("def f(): return 1", cases("code", {"assert f() == 1": ""})),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_right_program_passes(sandboxed, name):
    program, tests = PASSING[name]
    text = f"```python\nbad(\n```\nBetter:\n```python\n{program}\n```"
    grade = grade_code.grade(Attempt(text, tests))
    assert grade.correct, grade.feedback


def test_feedback_names_the_error_with_its_true_line(sandboxed):
    tests = cases("stdin", {"0\n": "1"})
    text = "```python\nn = int(input())\nprint(1 // n)\n```"
    grade = grade_code.grade(Attempt(text, tests))
    assert not grade.correct
    assert grade.feedback.startswith(
        "Runtime Error\nZeroDivisionError: integer division or modulo by zero\n"
        "Line 2 in <module> (Solution.py)\n\nLast Executed Input\n0"
    )


def test_expected_outputs_never_enter_the_sandbox(sandboxed):
    program = (
        "import os, sys\n"
        "seen = [open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()]\n"
        "frame = sys._getframe()\n"
        "while frame := frame.f_back:\n"
        "    seen.append(str(frame.f_locals))\n"
        "print('job' in str(seen), 'SEC' + 'RET' in str(seen))"
    )
    tests = cases("stdin", {"x": "SECRET"})
    grade = grade_code.grade(Attempt(f"```python\n{program}\n```", tests))
    assert "\n\nOutput\nTrue False\n" in grade.feedback


def test_without_bubblewrap_the_task_says_how_to_install_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    sandbox.require.cache_clear()
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        sandbox.require()
