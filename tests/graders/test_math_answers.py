"""Mathematical answers are split into parts before they are rewritten."""

import pytest

from sdjax.errors import UserError
from sdjax.graders import grade
from sdjax.graders.answer import tolerance
from sdjax.graders.math.symbolic import same

SEPARATORS = {
    ("(0,100)", "[0,100]"): False,
    ("100", "[0, 100]"): False,
    ("4256", "4, 256"): False,
    ("256, 4", "4, 256"): True,
    (r"\{256, 4\}", r"\{4, 256\}"): True,
    ("7250", "(7, 250)"): False,
    ("(3.0, 104)", "(3, 104)"): True,
    ("1,100", "1100"): True,
    (r"10,\!000", "10000"): True,
    (r"(1{,}000, 2)", "(1000,2)"): True,
    (r"\frac{1{,}000}{3}", "1000/3"): True,
    ("4,256", "4, 256"): True,
    ("58, 500", "58,500"): True,
    ("500,58", "58,500"): False,
    ("$1,234.56", "1234.56"): True,
    ("(2,1); (1,2)", "(1,2), (2,1)"): True,
}
UNITS = {
    ("6xz", "6xy"): False,
    ("6", "6xy"): False,
    ("6m", "6"): False,
    ("b^2-4ad", "b^2-4ac"): False,
    (r"\frac12", r"\frac{1}{2}bh"): False,
    ("(x+1)(x+2)", "(x+1)(x+2)yz"): False,
    ("x^2", "x^2+yz"): False,
    ("6yx", "6xy"): True,
    ("yx", "xy"): True,
    ("12 cm", "12"): True,
    ("12cm", "12"): True,
    (r"12\text{ cm}", "12"): True,
    ("12 miles per hour", "12 mph"): True,
    (r"2\pi \text{ cm}", r"2\pi"): True,
    (r"3 \text{ m/s}^2", "3"): True,
    ("5 inches", r"5\text{ in}"): True,
    ("5 km", "5 cm"): False,
    (r"864 \mbox{ inches}^3", r"864 \mbox{ inches}^2"): False,
    ("15 square meters", r"15\text{ m}^2"): True,
    (r"20^\circ\text{C}", "20"): True,
    ("50 percent", r"50\%"): True,
}
NAMES = {
    ("x=6, y=5", "x=5, y=6"): False,
    ("y=6, x=5", "x=5, y=6"): True,
    ("a = 2, b = 7", "b=2, a=7"): False,
    ("z=3,y=2,x=1", "x=1,y=2,z=3"): True,
    ("m=4 and n=3", "m=3, n=4"): False,
    ("1, 2", "x=1, y=2"): True,
    ("2, 1", "x=1, y=2"): False,
    ("x=2 or x=1", "1, 2"): True,
    ("x=5, 6", "6, 5"): True,
    ("(x,y)=(1,2)", "x=1, y=2"): True,
    ("(y,x)=(1,2)", "x=1, y=2"): False,
    ("y=5", "x=5"): False,
    ("5=x", "x=5"): True,
    (r"x = \frac{10}{2} = 5", "5"): True,
    (r"\text{Area} = 25", "25"): True,
    ("f(x)=2x+3", "y=2x+3"): True,
    ("y=2z+3", "y=2x+3"): False,
    ("y-2x=3", "3"): False,
    ("xy=5", "xz=5"): False,
}
STRUCTURES = {
    (r"\mathbb{R}", r"(-\infty,\infty)"): True,
    (r"(-\infty,\infty)", r"\mathbb{R}"): True,
    (r"\text{all real numbers}", "ℝ"): True,
    (r"\mathbb{Z}", r"\mathbb{R}"): False,
    (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"): True,
    (r"(9,36) \cup (0,9)", r"(0,9) \cup (9,36)"): True,
    (r"(0,9] \cup (9,36)", r"(0,9) \cup (9,36)"): False,
    ("3,4", "(3,4]"): False,
    (r"5,\infty", r"(5,\infty)"): False,
    ("]3,4]", "(3,4]"): True,
    (r"3<x\le4", "(3,4]"): True,
    (r"\{1+\sqrt5, 1-\sqrt{5}, -2\}", r"\{1\pm\sqrt{5},-2\}"): True,
    (r"\{1,2\}", "(1,2)"): False,
    (r"\textcolor{red}{(3,4]}", "(3,4]"): True,
}
SPELLINGS = {
    ("√51", r"\sqrt{51}"): True,
    ("√51", r"\sqrt{5}"): False,
    ("3√13", r"3\sqrt{13}"): True,
    ("√10/2", r"\frac{\sqrt{10}}{2}"): True,
    ("√(51)", r"\sqrt{51}"): True,
    (r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"): True,
    (r"0.\overline{3}", r"\frac{1}{3}"): True,
    ("0.1(6)", "1/6"): True,
    ("0.333...", "1/3"): True,
    ("5 1/2", "5.5"): True,
    ("-5 1/2", "-4.5"): False,
    ("5½", "11/2"): True,
    ("x²+1", "x^2+1"): True,
    (r"\textcolor{red}{27}", "27"): True,
    ("27\\\\", "27"): True,
    ("**27**", "27"): True,
    ("- 5", "-5"): True,
    ("- 5", "5"): False,
    (r"-\$5", "-5"): True,
    (r"-\,12", "-12"): True,
    ("－5", "-5"): True,
    (r"1\,234", "1234"): True,
    ("(c)", r"\text{(C)}"): True,
    ("AB", "ab"): False,
}
SIZES = {
    ("2^{100}", "1267650600228229401496703205376"): True,
    ("2^{100}", "1267650600228229401496703205377"): False,
    (r"\frac{\pi}{1000000}", r"\frac{\pi}{2000000}"): False,
    ("10^{-9}", "10^{-10}"): False,
    ("1e-400", "1e-401"): False,
    (r"6.72\times 10^{-5}", ".0000672"): True,
    (r"1.5\times10^{3}", "1500"): True,
    ("0.1x", "x/10"): True,
    ("10^{-12}x", "2x 10^{-12}"): False,
    ("3.14159", r"\pi"): True,
    ("3.1416", r"\pi"): False,
    ("1-1", "0"): True,
}
CASES = SEPARATORS | UNITS | NAMES | STRUCTURES | SPELLINGS | SIZES


@pytest.mark.parametrize(("pair", "right"), CASES.items(), ids=[f"{p}, {g}" for p, g in CASES])
def test_parts_signs_and_sizes_of_an_answer_are_read(pair, right):
    assert same(*pair) is right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("0.3", "0.30000000000000004", True),
        ("0.333333", "0.3333333333333333", True),
        ("0.3333", "0.3333333333333333", True),
        ("0.333", "0.3333333333333333", False),
        ("0.34", "0.3333333333333333", False),
        (r"\frac{1}{3}", "0.3333333333333333", True),
        (r"\frac{\pi}{4}", "0.7853981633974483", True),
        ("(0.3333, 2)", "(0.3333333333333333, 2)", True),
        ("0.33", "0.3333", False),
        ("1234567890124", "1234567890123", False),
        ("1e-7", "1e-07", True),
    ],
)
def test_a_computed_decimal_has_a_tolerance_and_no_other_number_has(answer, gold, right):
    assert grade("math", rf"\boxed{{{answer}}}", gold).correct is right
    if "\\" not in answer and "," not in answer:
        assert grade("number", rf"\boxed{{{answer}}}", gold).correct is right


@pytest.mark.parametrize("rule", ["math", "number"])
def test_a_tolerance_of_the_user_replaces_that_of_the_answer(rule):
    text = r"\boxed{3.14}"
    assert grade(rule, text, "3.1415", tolerance=1e-3).correct
    assert not grade(rule, text, "3.1415", tolerance=1e-4).correct
    assert not grade(rule, r"\boxed{0.3}", "0.30000000000000004", tolerance=0).correct


@pytest.mark.parametrize("value", [-0.1, 1, float("nan"), float("inf"), True, "0.1"])
def test_what_is_no_tolerance_is_refused(value):
    with pytest.raises(UserError, match="tolerance is"):
        tolerance.checked(value)
    with pytest.raises(UserError, match="tolerance is"):
        grade("number", "8", "8", tolerance=value)
