"""What the teacher reads in each context, and which contexts a training has at all."""

import json
from dataclasses import replace

import numpy as np
import pytest
from reading import Readable, make_group, question

from sdjax import config
from sdjax.errors import UserError
from sdjax.tasks.largest_number import LargestNumber
from sdjax.teacher import contexts

BUILT_IN = ("solution", "unrelated", "wrong", "reference", "plain", "feedback")


def cfg(**sections):
    """Returns a training's config with these sections or fields."""
    return config.Train(out="unused", task=LargestNumber(), **sections)


def groups():
    """Returns three questions: two with successes and failures, one with failures alone."""
    made = []
    for name, rewards in (("a", (1, 0, 1)), ("b", (0, 1, 0)), ("c", (0, 0, 0))):
        texts = [f"{name}{i} {'right' if r else 'wrong'}" for i, r in enumerate(rewards)]
        example = question(f"Question {name}?", name=name)
        told = [f"feedback {text}" for text in texts]
        made.append(make_group(texts, rewards, feedback=told, example=example, prompt=[7, 8]))
    return made


def built(sections, *, seed=0, step=0, thinking=None, of=None):
    """Returns the reprompts of contexts by name."""
    return contexts.build(
        groups() if of is None else of,
        Readable(),
        sections,
        enable_thinking=thinking,
        seed=seed,
        step=step,
    )


def read(prompt):
    """Returns the last message that a teacher reads, and the option of the chat template."""
    if prompt.tokens.tolist() == [7, 8]:
        return "the student's prompt", None
    text = json.loads(Readable().decode(prompt.tokens))
    return text["messages"][-1]["content"], text["enable_thinking"]


def texts(name, **sections):
    """Returns what the teacher of each completion reads in a built-in context, and who learns."""
    prompts = built({name: contexts.known(cfg(**sections))[name]})[name]
    return [[read(p)[0] for p in of] for of in prompts], [
        [p.distilled for p in of] for of in prompts
    ]


TAUGHT = [[True] * 3, [True, False, True], [False] * 3]
"""Completions for which a sibling is right."""


def test_solution_shows_a_right_sibling_after_the_question():
    shown, taught = texts("solution")
    assert taught == TAUGHT
    assert "Question a?" in shown[0][0] and "a2 right" in shown[0][0]
    assert "a0 right" not in shown[0][0] and "a0 right" in shown[0][2]
    assert shown[1][1] == "the student's prompt"


def test_unrelated_teaches_what_solution_teaches_and_shows_another_questions_success():
    shown, taught = texts("unrelated")
    assert taught == TAUGHT
    for number, name in enumerate("ab"):
        for text, learns in zip(shown[number], taught[number], strict=True):
            if learns:
                assert f"Question {name}?" in text
                other = "b1 right" if name == "a" else "right"
                assert other in text and "wrong" not in text
                assert not any(f"{name}{i}" in text for i in range(3))


def test_unrelated_is_masked_where_no_other_question_has_a_success():
    section = contexts.known(cfg())["unrelated"]
    of = [groups()[0], groups()[2]]
    assert not any(p.distilled for p in built({"x": section}, of=of)["x"][0])


def test_rows_of_the_same_question_are_not_another_question():
    section = contexts.known(cfg())["unrelated"]
    of = [groups()[0], groups()[0]]
    assert not any(p.distilled for of_group in built({"x": section}, of=of)["x"] for p in of_group)


def test_wrong_shows_a_failed_sibling():
    shown, taught = texts("wrong")
    assert taught == [[True, False, True], [True] * 3, [True] * 3]
    assert "a1 wrong" in shown[0][0] and "right" not in shown[0][0]
    assert all("wrong" in text and "right" not in text for text in shown[2])
    assert all(f"c{i} wrong" not in text for i, text in enumerate(shown[2]))


def test_reference_shows_the_solution_without_the_question():
    shown, taught = texts("reference")
    assert taught == TAUGHT
    assert "a2 right" in shown[0][0] and "Question" not in shown[0][0]


def test_reference_keeps_the_system_message_and_no_earlier_question():
    turns = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Earlier?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Question a?"},
    )
    example = replace(question("", name="a"), messages=turns)
    group = make_group(["one right", "two wrong"], (1, 0), example=example, prompt=[7, 8])
    section = contexts.known(cfg())["reference"]
    _, second = built({"x": section}, of=[group])["x"][0]
    messages = json.loads(Readable().decode(second.tokens))["messages"]
    assert [m["role"] for m in messages] == ["system", "user"]
    assert "Earlier?" not in str(messages) and "one right" in messages[1]["content"]


def test_plain_teaches_everyone_with_the_students_prompt():
    shown, taught = texts("plain")
    assert {text for of in shown for text in of} == {"the student's prompt"}
    assert all(all(of) for of in taught)


def test_feedback_shows_each_completion_its_own_feedback():
    shown, taught = texts("feedback")
    assert all(all(of) for of in taught)
    assert "feedback a1 wrong" in shown[0][1] and "feedback a0" not in shown[0][1]


def test_an_instruction_teaches_everyone_and_stands_after_the_question():
    section = config.Instruction(instruction="Do not hesitate {prompt}.")
    prompts = built({"careless": section})["careless"]
    for name, of in zip("abc", prompts, strict=True):
        assert all(p.distilled for p in of)
        assert {read(p)[0] for p in of} == {f"Question {name}?\n\nDo not hesitate {{prompt}}."}


def test_an_instruction_without_room_is_not_taught():
    section = config.Instruction(instruction="Do not hesitate." * 20, max_tokens=100)
    for p in (p for of in built({"x": section})["x"] for p in of):
        assert not p.distilled and p.truncated and p.tokens.tolist() == [7, 8]


def test_where_the_majority_is_shown_only_the_wrong_context_reads_rewards():
    shown = config.Reprompt(demonstration="majority")
    known = contexts.known(config.Train(out="", task=config.TaskConfig(), reprompt=shown))
    assert known["unrelated"].demonstration == "majority"
    assert (known["wrong"].demonstration, known["wrong"].sibling) == ("random", "failure")


@pytest.mark.parametrize(("teaches", "learn"), [("right", (True, False)), ("wrong", (False, True))])
def test_a_context_teaches_only_those_that_it_is_for(teaches, learn):
    section = config.Plain(teaches=teaches)
    for group, of in zip(groups(), built({"x": section})["x"], strict=True):
        for grade, prompt in zip(group.grades, of, strict=True):
            assert prompt.distilled == learn[0 if grade.correct else 1]
    assert contexts.can_teach(groups()[2], {"x": section}) == (teaches == "wrong")


@pytest.mark.parametrize("student", [None, True, False])
@pytest.mark.parametrize(
    ("thinking", "wanted"), [("as_student", None), ("on", True), ("off", False)]
)
def test_a_context_has_thinking_of_its_own(thinking, wanted, student):
    section = config.Demonstration(thinking=thinking)
    prompt = built({"x": section}, thinking=student)["x"][0][0]
    assert read(prompt)[1] == (student if wanted is None else wanted)


def test_a_plain_context_can_think_where_the_student_does_not():
    prompt = built({"x": config.Plain(thinking="on")}, thinking=False)["x"][0][0]
    assert prompt.distilled and read(prompt) == ("Question a?", True)


def test_a_plain_context_with_thinking_of_its_own_is_not_taught_without_room():
    (prompt, *_) = built({"x": config.Plain(thinking="on", max_tokens=1)}, thinking=False)["x"][0]
    assert not prompt.distilled and prompt.tokens.tolist() == [7, 8]


def shows(name, sections):
    return [p.tokens.tolist() for of in built(sections)[name] for p in of]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_choice_depends_on_seed_step_and_completion_alone(name):
    section = contexts.known(cfg())[name]
    alone = shows(name, {name: section})
    both = shows(name, {"other": config.Plain(), name: section})
    assert alone == both == shows(name, {name: section})


def test_another_step_or_seed_draws_another_unrelated_demonstration():
    example = [question(f"Question {i}?", name=str(i)) for i in range(8)]
    many = [make_group([f"{i}x", f"{i}y"], (1, 1), example=e) for i, e in enumerate(example)]
    section = {"x": contexts.known(cfg())["unrelated"]}

    def drawn(**numbers):
        return [p.tokens.tobytes() for of in built(section, of=many, **numbers)["x"] for p in of]

    one = drawn()
    assert drawn() == one and drawn(step=1) != one and drawn(seed=1) != one
    assert len({np.frombuffer(x, np.uint8).tobytes() for x in one}) > 8


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({}, ["solution"]),
        ({"target": config.Target(context="plain")}, ["plain"]),
        (
            {"target": config.Target(rule="weights", weights={"wrong": -1.0, "solution": 2.0})},
            ["wrong", "solution"],
        ),
        (
            {"target": config.Target(rule="pointwise_information")},
            ["solution", "reference", "plain"],
        ),
        ({"loss": config.Loss(distillation=0.0)}, []),
        (
            {"loss": config.Loss(distillation=0.0), "policy": config.Policy(credit="contrast")},
            ["solution", "wrong"],
        ),
        (
            {"loss": config.Loss(distillation=0.5), "policy": config.Policy(credit="contrast")},
            ["solution", "wrong"],
        ),
        # Nothing reads the credit of a policy gradient that does not run.
        ({"policy": config.Policy(credit="contrast")}, ["solution"]),
    ],
    ids=str,
)
def test_only_contexts_of_the_target_and_of_the_credit_are_read(sections, names):
    made = cfg(contexts={"careless": config.Instruction(instruction="Go.")}, **sections)
    assert list(contexts.used(made)) == names
    assert list(built(contexts.used(made))) == names


def test_a_context_of_the_config_stands_in_for_a_built_in_one():
    own = config.Demonstration(sibling="failure", demonstration="shortest")
    made = cfg(contexts={"wrong": own}, target=config.Target(context="wrong"))
    assert contexts.used(made) == {"wrong": own}


def test_an_unknown_context_names_the_known_ones():
    made = cfg(target=config.Target(context="unrelted"))
    with pytest.raises(UserError, match=r"'unrelted': must be one of solution, unrelated, .*add"):
        contexts.used(made)


@pytest.mark.parametrize(
    ("context", "says"),
    [
        (
            config.Demonstration(template="{prompt} Again."),
            r"contexts\.own\.template is .*{solution}",
        ),
        (
            config.Feedback(template="{prompt}{solution}"),
            r"contexts\.own\.template is .*{feedback}",
        ),
        (config.Demonstration(demonstration="none"), r"contexts\.own\.demonstration is 'none'"),
    ],
)
def test_a_context_that_shows_the_teacher_nothing_is_refused_by_its_place(context, says):
    with pytest.raises(UserError, match=says):
        contexts.used(cfg(contexts={"own": context}, target=config.Target(context="own")))


def test_a_template_without_a_demonstration_is_refused_for_a_built_in_context_too():
    base = config.Reprompt(demonstration="none", feedback=True, template="{prompt}{feedback}")
    assert list(contexts.used(cfg(reprompt=base))) == ["solution"]
    with pytest.raises(UserError, match=r"reprompt\.template is .*needs {solution}"):
        contexts.used(cfg(reprompt=base, target=config.Target(context="wrong")))


@pytest.mark.parametrize("name", ["student", "solution"])
def test_two_names_are_taken(name):
    with pytest.raises(UserError, match=f"contexts is '{name}'"):
        cfg(contexts={name: config.Plain()})


def test_a_group_can_be_taught_if_every_context_can_teach_it():
    known = contexts.known(cfg())
    can = [
        [contexts.can_teach(group, {n: known[n] for n in names}) for group in groups()]
        for names in (["solution"], ["wrong"], ["solution", "wrong"], ["plain"], [])
    ]
    assert can == [
        [True, True, False], [True] * 3, [True, True, False], [True] * 3, [False] * 3
    ]  # fmt: skip
