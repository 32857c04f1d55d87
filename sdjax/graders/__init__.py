"""Graders: a completion's text in, a `Grade` out. They run without jax and accept any text.

    >>> from sdjax.graders import grade
    >>> grade("number", "5 + 3 = 8.", "8").correct
    True

`grade` is the one public call. Tasks take their graders from the same table, `RULES`. A rule that
compares in worker processes starts them on first use, and every task shares them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdjax.errors import UserError, require_package
from sdjax.own_functions import is_named

# These modules are imported when a rule is used, because `import sdjax.graders` must stay light.
if TYPE_CHECKING:
    from sdjax.graders.workers.grade_batch import Grader
    from sdjax.records import Grade

# A name in RULES or of a function of the user (module:function), or a function (completion, answer,
# *, truncated, **options) -> Grade.
Rule = str | Callable[..., "Grade"]
# Takes the options of a rule; returns the function that grades a batch by it.
Maker = Callable[..., "Grader"]


def grade(
    rule: Rule,
    completion: str,
    answer: str,
    *,
    truncated: bool = False,
    id: str = "",
    **options: Any,
) -> Grade:
    """Returns the grade of one completion.

    Args:
        rule: A name in RULES, a function (completion, answer, *, truncated, **options) -> Grade,
            or the name of a function (completion, row) of yours, module:function.
        completion: Any text.
        answer: The text that the rule compares with, in the form that the rule reads.
        truncated: Whether the length limit cut the completion off.
        id: The example's id; only the rule "reasoning_gym" reads it.
        options: Options of the rule; docs/graders.md lists them.

    Raises UserError for an unknown rule.
    """
    from sdjax.graders.workers.grade_batch import Attempt

    return grader(rule, **options)([Attempt(completion, answer, truncated, id)])[0]


def grader(rule: Rule, /, **options: Any) -> Grader:
    """Returns the function that grades a batch of attempts by a rule, as `tasks.Task` takes it.

    Raises UserError for an unknown rule.
    """
    if callable(rule):
        from sdjax.graders.workers.grade_batch import each

        return each(functools.partial(rule, **options))
    if is_named(rule):
        from sdjax.graders import own

        return own.grader(rule, **options)
    if rule not in RULES:
        raise UserError(
            f"no rule {rule!r}: must be {', '.join(RULES)}, or a function that returns a Grade"
        )
    return RULES[rule](**options)


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a reward or grader `f(completions, rows)` that takes lists and returns a list.

    Returns the function. One process at a time makes its calls, so that a model that it loads is
    in memory once.
    """
    from sdjax.graders.own_worker import MARK

    setattr(function, MARK, True)
    return function


def _imported(place: str) -> Any:
    """Returns the function at "module:name"; the module's name is relative to sdjax.graders."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def _each_text(place: str) -> Maker:
    """Returns the maker of a rule whose function grades one text."""
    return lambda **options: grader(_imported(place), **options)


def _batch(place: str, **fixed: Any) -> Maker:
    """Returns the maker of a rule whose function returns a grader of batches."""
    return lambda **options: _imported(place)(**fixed, **options)


def _comparing(place: str, key: str = "prediction") -> Maker:
    """Returns the maker of a rule that can compare mathematical predictions.

    `key` names the prediction in the details of its grades. The maker raises UserError if the
    parsers of mathematics are not installed, because the rule may need them at any answer.
    """

    def make(**options: Any) -> Grader:
        from sdjax.graders.votes import ComparingGrader

        require_package("math_verify", "math", "a grader of mathematical answers")
        return ComparingGrader(_imported(place)(**options), key)

    return make


RULES: dict[str, Maker] = {
    "number": _each_text("answer.number:grade"),
    "expression": _each_text("answer.expression:grade"),
    "choice": _each_text("answer.choice:grade"),
    "choice_reference": _each_text("answer.choice:grade_reference"),
    "math": _comparing("math.grade_math:ours"),
    "math_reference": _comparing("math.grade_math:reference", "pred"),
    "math_eval_reference": _comparing("math.paper_grade:reference", "extracted"),
    "tooluse": _each_text("tool_calls:grade"),
    "tooluse_reference": _each_text("tool_calls:grade_reference"),
    "code": _batch("code.grade_code:grader"),
    "code_reference": _batch("code.grade_code:grader", reference=True),
    "reasoning_gym": _batch("reasoning_gym_rule:grader"),
}
"""Each rule by its name: the function that takes its options and returns its grader."""
