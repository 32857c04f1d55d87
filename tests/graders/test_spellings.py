"""The mathematics rule calls equivalent spellings right and wrong ones wrong."""

import pytest
import spellings

from sdjax.graders import grade
from sdjax.graders.math import paper_grade
from sdjax.graders.math.symbolic import same

GOLDS = spellings.golds()
FEW = [gold for found in GOLDS.values() for gold in found[3::29]]


def misjudged(golds):
    return [
        (kind, rule, text, gold)
        for gold in golds
        for kind, spell in (("equivalent", spellings.equivalent), ("wrong", spellings.wrong))
        for rule, text in spell(gold)
        if same(text, gold) != (kind == "equivalent")
    ]


def test_spellings_of_a_few_gold_answers_are_judged_right():
    assert len(FEW) > 12 and not misjudged(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDS)
def test_spellings_of_every_gold_answer_are_judged_right(name):
    assert not misjudged(GOLDS[name])


def test_most_answers_have_ten_spellings_of_each_kind():
    for spell, enough in ((spellings.equivalent, 0.95), (spellings.wrong, 0.6)):
        counts = [len(spell(gold)) for found in GOLDS.values() for gold in found]
        assert sum(n == spellings.TEN for n in counts) > enough * len(counts)
        assert min(counts) >= 1


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("(a - 5)(b+2)", "(5)(b+2)"),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}7"),
        (r"$5.4 \text{ cents}$", "5.4cents"),
        ("{y = 2x + 3}", "{y=2x+3}"),
        (r"\frac\pi2", r"\frac{\}{p}i2"),
        (r"\sqrt{2}/3", r"\frac{\sqrt{2}}{3}"),
        ("01/2", "01/2"),
        ("5 may", "5"),
    ],
)
def test_math_eval_reference_rewrites_an_answer_as_the_papers_code(text, stripped):
    assert paper_grade.strip(text) == stripped


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("12\\", "12", False), ("12", "12\\", False), (r"(1,2)+1", "(1,2)+1", True)],
)
def test_math_eval_reference_keeps_a_backslash_without_a_percent_sign(answer, gold, right):
    assert grade("math_eval_reference", rf"\boxed{{{answer} }}", gold).correct is right
