"""Grades tool calls written as "Action: NAME" and "Action Input: JSON" lines.

The default rule (`grade`) compares name and JSON input of each call with the expected calls. It
reads nested JSON. The order of the calls is free, 3 equals 3.0, and true does not equal 1. Feedback
names the wrong calls and shows the expected calls only with `reveal`.

`grade_reference` does what verl/utils/reward_score/feedback/tooluse.py of both papers' code does.
It cuts inputs at the first closing brace, merges the inputs of all calls, and puts the expected
calls into its feedback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sdjax.graders.answer.regions import after_thinking
from sdjax.records import Grade

MAX_CALLS = 64
_NAME = re.compile(r"^[ \t>*_#-]{0,8}Action[ \t*_]{0,4}:[*_]{0,4}(.*)$", re.MULTILINE)
_INPUT = re.compile(r"^[ \t>*_#-]{0,8}Action[ \t]Input[ \t*_]{0,4}:[*_]{0,4}", re.MULTILINE)
_NOT_SPACE = re.compile(r"\S")
_FENCE = re.compile(r"\s{0,9}```(?:json)?\s{0,9}")


def expected_calls(answer: str) -> list[tuple[str, Any]]:
    """Returns the (name, input) of each call in an answer.

    An answer is a JSON list of {"Action": name, "Action_Input": an object or its JSON text}. Raises
    ValueError, KeyError or TypeError for any other text.
    """
    calls = []
    for call in json.loads(answer):
        name, value = call["Action"], call["Action_Input"]
        calls.append((str(name), json.loads(value) if isinstance(value, str) else value))
    return calls


def called(text: str) -> list[tuple[str, Any]]:
    """Returns the (name, input) of each call in a response; the input is None if not JSON."""
    names = [(m.end(), m.group(1).strip(" \t`*\r")) for m in _NAME.finditer(text)]
    calls = []
    for i, (start, name) in enumerate(names[: MAX_CALLS + 1]):
        end = names[i + 1][0] if i + 1 < len(names) else len(text)
        match = _INPUT.search(text, start, end)
        calls.append((name.removesuffix("()"), _json(text[match.end() : end]) if match else None))
    return calls


def _json(text: str) -> Any:
    """Returns the JSON object at the start of a text, in or out of a code fence, or None."""
    fence = _FENCE.match(text)
    text = text[fence.end() :] if fence else text.lstrip()
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _canonical(value: Any) -> Any:
    """Returns a value that equals another as JSON does: numbers by value, booleans apart."""
    if isinstance(value, bool) or value is None:
        return (type(value).__name__, value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value


def grade(text: str, answer: str, *, truncated: bool = False, reveal: bool = False) -> Grade:
    """Returns reward 1 if the calls of a response are the expected ones, else 0."""
    calls = called(after_thinking(text))
    try:
        left = [_canonical(list(call)) for call in expected_calls(answer)]
        made = [_canonical(list(call)) for call in calls]
        unexpected = [calls[i] for i, call in enumerate(made) if not _take(call, left)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _judged(calls, False, truncated, "The expected calls of this example are broken.")
    if not unexpected and not left:
        return _judged(calls, True, truncated, "")
    if not calls:
        feedback = "Your response makes no call: it needs Action: and Action Input: lines."
    elif unexpected:
        feedback = f"These calls are not as expected: {_shown(unexpected)}."
    else:
        feedback = "Your response makes fewer calls than expected."
    if reveal:
        feedback += f" Expected: {_shown(expected_calls(answer))}."
    return _judged(calls, False, truncated, feedback)


def _take(call: Any, left: list[Any]) -> bool:
    """Removes a call from the expected calls; returns whether it was one of them."""
    if call not in left:
        return False
    left.remove(call)
    return True


def _shown(calls: list[tuple[str, Any]]) -> str:
    return "; ".join(
        f"{name[:80]}({'no valid JSON' if value is None else json.dumps(value)[:400]})"
        for name, value in calls[:8]
    )


def _vote(calls: list[tuple[str, Any]]) -> str | None:
    """Returns calls as JSON in one spelling: calls and keys in order, 3.0 as 3.

    Returns None if an input is nested too deeply to be written.
    """
    try:
        written = [
            json.dumps({"Action": name, "Action_Input": _plain(value)}, sort_keys=True)
            for name, value in calls
        ]
    except RecursionError:
        return None
    return f"[{', '.join(sorted(written))}]"


def _plain(value: Any) -> Any:
    """Returns a JSON value with whole numbers for floats that equal one."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _judged(calls: list[tuple[str, Any]], correct: bool, truncated: bool, feedback: str) -> Grade:
    return Grade(
        reward=float(correct),
        correct=correct,
        feedback=feedback,
        # No call is an answer only where none is expected.
        details={"prediction": _vote(calls) if calls or correct else None, "truncated": truncated},
    )


def grade_reference(text: str, answer: str, *, truncated: bool = False) -> Grade:
    """Returns the reward of the papers' code; `details` hold its other results."""
    del truncated
    try:
        gold = json.loads(answer)
        expected = [str(call["Action"]) for call in gold]
        wanted = _merged(call["Action_Input"] for call in gold)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Grade(
            reward=0.0,
            correct=False,
            feedback="Failed to parse ground truth JSON",
            details={"pred": "", "prediction": None, "incorrect_format": 1},
        )
    actions = re.findall(r"Action:\s*(\w+)", text)
    inputs = _merged(_cut_inputs(text))
    problems = []
    if sorted(actions) != sorted(expected):
        problems.append(f"Actions mismatch: predicted {actions}, expected {expected}")
    if inputs != wanted:
        problems.append(f"Action inputs mismatch: predicted {inputs}, expected {wanted}")
    return Grade(
        reward=float(not problems),
        correct=not problems,
        feedback="; ".join(problems),
        details={
            "pred": f"Actions: {actions}, Inputs: {inputs}",
            "prediction": _vote([(action, None) for action in actions] + [("", inputs)]),
            "incorrect_format": int(not _formatted(text)),
        },
    )


def _cut_inputs(text: str) -> Iterator[str]:
    """Yields the text after each "Action Input:", from its brace to the first closing brace."""
    position = 0
    while (found := text.find("Action Input:", position)) >= 0:
        position = found + len("Action Input:")
        start = _NOT_SPACE.search(text, position)
        if start is None:
            return
        if start.group() != "{":
            continue
        end = text.find("}", start.end())
        if end < 0:
            return
        yield text[start.start() : end + 1]
        position = end + 1


def _merged(inputs: Iterable[Any]) -> dict[str, Any]:
    """Returns one dict of all JSON objects; a later input replaces an earlier one."""
    merged: dict[str, Any] = {}
    for value in inputs:
        try:
            decoded = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            continue
        if isinstance(decoded, dict):
            merged.update(decoded)
    return merged


def _formatted(text: str) -> bool:
    """Returns whether "Action:" stands anywhere before a line that begins "Action Input:"."""
    action = text.find("Action:")
    return action >= 0 and "\nAction Input:" in text[action:]
