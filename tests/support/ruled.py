"""A task of short prompts for any rule of the graders' table, and cases for every rule."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from sdjax import config, graders
from sdjax.graders import reasoning_gym_rule
from sdjax.records import Example
from sdjax.tasks import Task

SPELLED = {"name": "spell_backward", "options": {"seed": 0, "size": 10}}
CALL = 'Action: f\nAction Input: {"a": 1, "b": 2}'
SAME_CALL = 'Action: f\nAction Input: {"b": 2.0, "a": 1}'
WRONG_CALL = 'Action: g\nAction Input: {"c": [1, 2]}'
SAME_WRONG_CALL = 'Action: g\nAction Input: {"c": [1.0, 2]}'
PROGRAM = "```python\nprint(int(input()) + 1)\n```"
OTHER_PROGRAM = "```python\nprint(1 + int(input()))\n```"
WRONG_PROGRAM = "```python\nprint(1)\n```"
TESTS = {"testtype": "stdin", "fn_name": "", "inputs": ["1"], "outputs": ["2"], "time_limit": 1}
CALLS = json.dumps([{"Action": "f", "Action_Input": {"a": 1, "b": 2}}])
# For each rule: its options, the answer, two spellings of a right and of a wrong completion.
CASES = {
    "number": ({}, "12.5", ("12.50", "It is 12.5"), ("1,000", "1000")),
    "expression": ({}, "3 4 5 = 17", ("3*4+5", "5 + 4*3 = 17"), ("3+4+5", "5+(4+3)")),
    "choice": ({}, "A", ("The answer is A.", "<answer>A</answer>"), ("B", "Answer: B")),
    "choice_reference": (
        {},
        "A",
        ("<answer>A</answer>", "so <answer> A </answer>"),
        ("<answer>B</answer>", "so <answer> B </answer>"),
    ),
    "math": (
        {},
        "\\frac{1}{2}",
        ("\\boxed{1/2}", "\\boxed{0.5}"),
        ("\\boxed{x+1}", "\\boxed{1+x}"),
    ),
    "math_reference": (
        {},
        "\\frac{1}{2}",
        ("\\boxed{1/2}", "\\boxed{0.5}"),
        ("\\boxed{3/4}", "\\boxed{0.75}"),
    ),
    "math_eval_reference": (
        {},
        "\\frac{1}{2}",
        ("\\boxed{1/2}", "\\boxed{0.5}"),
        ("\\boxed{3/4}", "\\boxed{0.75}"),
    ),
    "tooluse": ({}, CALLS, (CALL, SAME_CALL), (WRONG_CALL, SAME_WRONG_CALL)),
    "tooluse_reference": ({}, CALLS, (CALL, SAME_CALL), (WRONG_CALL, SAME_WRONG_CALL)),
    "code": ({}, json.dumps(TESTS), (PROGRAM, OTHER_PROGRAM), (WRONG_PROGRAM, "no program")),
    "code_reference": ({}, json.dumps(TESTS), (PROGRAM, OTHER_PROGRAM), (WRONG_PROGRAM, "none")),
    "reasoning_gym": (SPELLED, None, None, ("<answer>zzz</answer>", "zzz")),
}


def case(rule: str) -> tuple[dict, str, tuple[str, str], tuple[str, str]]:
    """Returns the options of a rule, an answer, two right texts and two wrong texts."""
    options, answer, right, wrong = CASES[rule]
    if answer is None:
        ((_, answer),) = reasoning_gym_rule.questions(**SPELLED, start=0, count=1)
        right = (f"<answer>{answer}</answer>", answer)
    return options, answer, right, wrong


@dataclass(frozen=True, kw_only=True)
class Ruled(config.TaskConfig):
    """Questions that all have the answer of a rule's case."""

    rule: str = "number"
    """A name of the graders' table."""
    half_right: bool = False
    """Grades a completion of even length as the right text of the case: a study needs some."""
    held_out: int = 3


def load(cfg: Ruled, data: config.Data) -> Task:
    """Returns the task of a rule."""
    options, answer, (right, _), _ = case(cfg.rule)
    answers = [answer] * (4 + cfg.held_out)
    if cfg.rule == "reasoning_gym":
        # An id is the index of a question in the generator.
        items = reasoning_gym_rule.questions(**SPELLED, start=0, count=len(answers))
        answers = [own for _, own in items]
    examples = [
        Example(
            id=str(i),
            messages=({"role": "user", "content": f"Question {i}?"},),
            answer=own,
            task=cfg.rule,
        )
        for i, own in enumerate(answers)
    ]
    grader = graders.grader(cfg.rule, **options)
    if cfg.half_right:
        rule = grader

        def grader(attempts):
            texts = [a.answer if cfg.rule == "reasoning_gym" else right for a in attempts]
            return rule(
                [
                    a if len(a.text) % 2 else replace(a, text=text)
                    for a, text in zip(attempts, texts, strict=True)
                ]
            )

    return Task(name=cfg.rule, train=examples[:4], held_out=examples[4:], grader=grader)
