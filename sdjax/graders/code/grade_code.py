"""Grades a program by running it on tests in the sandbox.

The default rule runs the last closed ```python block with all of Python. The arguments of a
functional test are one JSON value per line, and its function may be a method of `class Solution`.
Outputs are compared word by word, and numbers by value.

`reference=True` does what verl/utils/reward_score/feedback/code.py of both papers' code does. It
runs the longest block with restricted builtins, splits arguments at any space, and compares
outputs as text. Both write feedback as the papers' code does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from sdjax.graders.answer.regions import after_thinking
from sdjax.graders.code import feedback, sandbox
from sdjax.graders.workers.grade_batch import Attempt, Grader
from sdjax.records import Grade

DEFAULT_LIMIT_S = 6.0
# All tests of a program together have this many times the time limit of one test.
TOTAL_FACTOR = 4
MAX_SHOWN = 2000

_BLOCK = re.compile(r"```(\w*)[ \t\r]*\n(.*?)```", re.DOTALL)
_REFERENCE_BLOCK = re.compile(r"```(?:\w+)?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Tests:
    """The inputs that a program gets and the outputs that it must give."""

    __test__ = False  # pytest must not collect this class

    kind: Literal["stdin", "functional", "code"]
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class ProgramOutcome:
    """The result of one test. `shown` is the output as feedback shows it."""

    status: Literal["passed", "wrong", "error", "timeout", "format"]
    input: str = ""
    shown: str = ""
    expected: str = ""
    debug: str = ""
    value: str = ""


def read_tests(text: str) -> Tests:
    """Returns the tests in a JSON text; raises ValueError or TypeError for any other text.

    {"testtype": "stdin" | "functional" | "code", "fn_name", "inputs": [...], "outputs": [...],
    "time_limit": seconds or null}
    """
    data = json.loads(text)
    if not isinstance(data, dict) or not isinstance(data.get("inputs"), list):
        raise ValueError("needs a list 'inputs'")
    inputs, outputs = data["inputs"], data.get("outputs")
    if not isinstance(outputs, list) or len(outputs) != len(inputs) or not inputs:
        raise ValueError("needs as many 'outputs' as 'inputs', at least one")
    if data.get("testtype") not in ("stdin", "functional", "code"):
        raise ValueError(f"testtype is {data.get('testtype')!r}")
    return Tests(
        data["testtype"],
        str(data.get("fn_name") or ""),
        tuple(map(str, inputs)),
        tuple(map(str, outputs)),
        float(data.get("time_limit") or DEFAULT_LIMIT_S),
    )


def program(text: str, *, reference: bool) -> str | None:
    """Returns the program in a response, or None if it has none."""
    if reference:
        return max(_REFERENCE_BLOCK.findall(text), key=len, default=None)
    blocks = [
        (language.lower(), body)
        for language, body in _BLOCK.findall(after_thinking(text))
        if language.lower() in ("", "python", "python3", "py")
    ]
    named = [body for language, body in blocks if language]
    return named[-1] if named else blocks[-1][1] if blocks else None


def grader(*, reference: bool = False, parallel: int | None = None) -> Grader:
    """Returns a grader that runs `parallel` programs at a time; None runs one per core.

    Raises UserError if the sandbox does not work on this machine.
    """
    sandbox.require()

    def grade_all(attempts: Sequence[Attempt]) -> list[Grade]:
        with ThreadPoolExecutor(parallel or os.cpu_count()) as threads:
            return list(threads.map(lambda a: grade(a, reference=reference), attempts))

    return grade_all


def grade(attempt: Attempt, *, reference: bool = False) -> Grade:
    """Returns reward 1 if the program passes every test, else 0.

    `details["acc"]` is the share of tests that it passes.
    """
    try:
        tests = read_tests(attempt.answer)
    except (ValueError, TypeError, RecursionError):
        return _unreadable(attempt)
    code = program(attempt.text, reference=reference)
    if code is None:
        outcomes = [ProgramOutcome("format", value="'Incorrect format'")]
    else:
        limits = sandbox.Limits(
            test_s=tests.limit_s + 1, total_s=TOTAL_FACTOR * (tests.limit_s + 1)
        )
        given = [sandbox.Test(kind=tests.kind, input=i, name=tests.name) for i in tests.inputs]
        reports = sandbox.run(code, given, limits, reference=reference)
        outcomes = [
            _outcome(tests, i, report, reference=reference) for i, report in enumerate(reports)
        ]
    return _grade(attempt, outcomes)


def _outcome(
    tests: Tests, index: int, report: dict[str, Any], *, reference: bool
) -> ProgramOutcome:
    given, expected = tests.inputs[index], tests.outputs[index]
    debug = str(report.get("stderr", ""))

    def outcome(status: Any, shown: str, value: str) -> ProgramOutcome:
        return ProgramOutcome(status, given, shown, expected, debug, value)

    if report.get("timeout"):
        return outcome("timeout", "", "'Time out'")
    error = _error(report)
    if error is not None:
        return outcome("error", error, repr(f"Error: {error}"))
    if tests.kind == "code":
        return outcome("passed", "", "'All tests pass'")
    if tests.kind == "stdin":
        shown = str(report.get("stdout", "")).strip()
        passed = (_same_text if reference else _same_words)(shown, expected)
        return outcome("passed" if passed else "wrong", shown, repr(shown))
    passed = _same_value(str(report.get("result")), expected, exact=reference)
    shown = str(report.get("str", ""))
    return outcome("passed" if passed else "wrong", shown, str(report.get("repr", "")))


def _error(report: dict[str, Any]) -> str | None:
    if "error" in report:
        return "\n".join(map(str, report["error"]))
    if "flooded" in report:
        return "OutputLimit: the program writes too much"
    if "died" in report:
        return f"Killed: the program's process ended (signal {report['died']})"
    return None


def _same_text(actual: str, expected: str) -> bool:
    """Returns the papers' verdict: newlines count as spaces, a dash at the expected end is cut."""
    wanted = expected.strip().replace("\n", " ").removesuffix("-").strip()
    return actual.replace("\n", " ") == wanted


def _same_words(actual: str, expected: str) -> bool:
    ours, theirs = actual.split(), expected.split()
    return len(ours) == len(theirs) and all(
        a == e or _same_number(a, e) for a, e in zip(ours, theirs, strict=True)
    )


def _same_number(actual: str, expected: str) -> bool:
    if len(actual) > 400 or len(expected) > 400:
        return False
    try:
        return Decimal(actual) == Decimal(expected)
    except InvalidOperation:
        return False


def _same_value(actual: str, expected: str, *, exact: bool) -> bool:
    try:
        ours, theirs = json.loads(actual), json.loads(expected)
        if exact:
            return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
        return ours == theirs
    except (ValueError, RecursionError):
        return False


def _grade(attempt: Attempt, outcomes: list[ProgramOutcome]) -> Grade:
    passed = [o.status == "passed" for o in outcomes]
    statuses = {o.status for o in outcomes}
    missing = "format" in statuses
    return Grade(
        reward=float(all(passed)),
        correct=all(passed),
        feedback=feedback.write(outcomes, truncated=attempt.truncated),
        details={
            "acc": sum(passed) / len(passed),
            "pred": f"[{', '.join(o.value[:MAX_SHOWN] for o in outcomes)}]",
            "incorrect_format": int(missing),
            "error_in_test_cases": int("error" in statuses),
            "timed_out": int("timeout" in statuses),
            "truncated": int(attempt.truncated),
            "truncated_and_missing_answer": int(attempt.truncated and missing),
        },
    )


def _unreadable(attempt: Attempt) -> Grade:
    return Grade(
        reward=0.0,
        correct=False,
        feedback="Failed to parse ground truth test cases.",
        details={
            "acc": 0.0,
            "pred": "",
            "incorrect_format": 0,
            "error_in_test_cases": 1,
            "timed_out": 0,
            "truncated": int(attempt.truncated),
            "truncated_and_missing_answer": int(attempt.truncated),
        },
    )
