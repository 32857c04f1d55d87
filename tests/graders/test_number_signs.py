"""A minus sign belongs to its number, whatever stands between the two."""

import pytest

from sdjax.graders.answer.number import grade

MINUS_FIVE = [
    *(r"-5", r"- 5", r"-  5", r"-\,5", r"- \,5", r"-\, 5", r"-\,\,5", r"-\quad 5", r"-~5"),
    *(r"-$5", r"-\$5", r"-\$ \,5", r"-€5", r"-{5}", r"{-}5", r"-(5)", r"-\text{5}", r"-|5|"),
    *(r"-\mathbf{5}", r"\text{-}5", r"-\left(5\right)", r"-**5**", r"-`5`", r"-&nbsp;5"),
    *("minus 5", "negative 5", "\u22125", "\uff0d5", "-\uff15"),
]


@pytest.mark.parametrize("spelling", MINUS_FIVE)
def test_minus_five_is_not_five(spelling):
    for text in (f"<answer>{spelling}</answer>", rf"so \boxed{{{spelling}}}"):
        assert grade(text, "-5").correct and not grade(text, "5").correct, text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5 minus 3 is 2", "2"),
        ("so 10 - 4 = 6", "6"),
        ("<answer>\uff15</answer>", "5"),
        ("f(5) is 7", "7"),
        (r"\boxed{\text{5}}", "5"),
        ("3-(5)", "5"),
        ("pages 3-5", "5"),
        ("it is 7 (5)", "5"),
    ],
)
def test_a_difference_and_a_bracket_are_no_sign(text, answer):
    assert grade(text, answer).correct
