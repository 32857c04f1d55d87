"""Every generator of reasoning-gym grades its own answers right, or is refused at the load."""

import json
import re
from importlib.metadata import version

import pytest
from paths import ROOT

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders import reasoning_gym_worker
from sdjax.tasks import arithmetic
from sdjax.tasks.arithmetic import Arithmetic

ACCEPTS_ANYTHING = {"game_of_life_halting", "puzzle24"}
NEEDS_MORE_THAN_OPTIONS_CAN_SAY = {"composite"}
STATES_NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
# Generators that laid out all questions at once, used global random numbers, or evaluate their own
# problem; a few plain ones; those that are refused or state no answer.
QUICK = (
    *("bitwise_arithmetic", "gsm_symbolic", "list_functions", "game_of_life_halting"),
    *("graph_color", "chain_sum", "polynomial_multiplication"),
)
LONGER = ("acre", "puzzle24", "countdown")


def load(name, size=16, held_out=4, **options):
    cfg = Arithmetic(name=name, size=size, held_out=held_out, **options)
    return arithmetic.load(cfg, config.Data())


def check(name):
    """Loads a generator and grades its own answers and a vague sentence."""
    if name in ACCEPTS_ANYTHING | NEEDS_MORE_THAN_OPTIONS_CAN_SAY:
        with pytest.raises(UserError, match=f"task.name is '{name}'|{name}: Must specify") as error:
            load(name)
        assert "\n" not in str(error.value)
        return
    task = load(name)
    examples = [*task.train, *task.held_out]
    assert len(examples) == 20
    vague = task.grade_many(["I am not sure"] * 20, examples, [False] * 20)
    assert not any(grade.correct for grade in vague)
    if name in STATES_NO_ANSWER:
        assert {example.answer for example in examples} == {""}
    else:
        own = [f"<answer>{example.answer}</answer>" for example in examples]
        wrong = [
            (example.answer, grade.details)
            for example, grade in zip(
                examples, task.grade_many(own, examples, [False] * 20), strict=True
            )
            if not grade.correct
        ]
        assert not wrong
        assert all(e.answer != "None" and e.solution is None for e in examples)


@pytest.mark.parametrize("name", QUICK)
def test_a_generator_grades_its_own_answers_right_or_is_refused(name):
    check(name)


@pytest.mark.heavy
@pytest.mark.parametrize("name", LONGER)
def test_a_slower_generator_grades_its_own_answers_right_or_is_refused(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*reasoning_gym_worker.DATASETS} - {*QUICK, *LONGER}))
def test_every_other_generator_grades_its_own_answers_right_or_is_refused(name):
    check(name)


def test_the_docs_list_the_generators_of_the_installed_version():
    text = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    part = text.split("## Generators of reasoning-gym")[1].split("\n## ")[0]
    assert f"reasoning-gym {version('reasoning-gym')}" in part
    assert f"all {len(reasoning_gym_worker.DATASETS)} " in part
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", part, re.MULTILINE))
    listed = {row: set(re.findall(r"`(\w+)`", names)) for row, names in rows.items()}
    assert listed["refused: the rule accepts anything"] == ACCEPTS_ANYTHING
    assert listed["refused: it needs options that are no single values"] == (
        NEEDS_MORE_THAN_OPTIONS_CAN_SAY
    )
    assert listed["states no answer of its own"] == STATES_NO_ANSWER


@pytest.mark.parametrize("name", ["chain_sum", "gsm_symbolic"])
def test_a_generator_that_runs_out_grows_and_keeps_its_questions(name, monkeypatch):
    whole = load(name, size=5, held_out=20)
    monkeypatch.setattr(arithmetic, "LEAST_SIZE", 1)
    monkeypatch.setattr(arithmetic, "GROWTH", 2)
    arithmetic._loaded.clear()
    cfg = Arithmetic(name=name, size=5, held_out=20)
    grown = arithmetic._generate(cfg)
    assert grown.size > 50
    assert (grown.train, grown.held_out) == (whole.train, whole.held_out)


def test_a_generator_that_would_take_hours_is_refused(monkeypatch):
    monkeypatch.setattr(arithmetic, "LONGEST_S", 1e-9)
    arithmetic._loaded.clear()
    with pytest.raises(UserError, match=r"task.size is 300: chain_sum takes .* lower task.size"):
        load("chain_sum", size=300)


def test_only_the_generators_own_texts_reach_eval_and_sympys_parser(monkeypatch):
    """The worker's functions run here, on a problem of the generator and on texts of a model."""
    options = json.dumps({"seed": 0, "size": 10})
    monkeypatch.setattr(reasoning_gym_worker, "restart_clock", lambda limit_s: None)
    score = reasoning_gym_worker.full_score
    item = reasoning_gym_worker._item("bitwise_arithmetic", options, 0)
    assert score("bitwise_arithmetic", options, 0, item["answer"], 3.0)
    assert score("bitwise_arithmetic", options, 0, str(int(item["answer"], 0)), 3.0)
    assert not score("bitwise_arithmetic", options, 0, "0x1", 3.0)
    seen = []
    with reasoning_gym_worker._harmless(frozenset(["(1 + 2)"])):
        from reasoning_gym.games import n_queens, puzzle24

        assert vars(n_queens)["eval"]("(1 + 2)") == 3
        assert vars(n_queens)["eval"]("[1, 2]") == [1, 2]
        for text in ("(1 + 3)", "__import__('os')", "print()"):
            with pytest.raises(ValueError):
                seen.append(vars(n_queens)["eval"](text))
        with pytest.raises(ValueError):
            seen.append(puzzle24.parse_expr("__import__('os').getcwd()"))
    assert not seen and "eval" not in vars(n_queens)
