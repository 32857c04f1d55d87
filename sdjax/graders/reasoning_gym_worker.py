"""Generates reasoning-gym's questions and scores answers by its rules. Runs in workers only.

Some generators depend on the order of sets, so questions are generated where the hash seed is
fixed. Some draw from Python's global random numbers, so these are seeded for each question.

Several generators call `eval` or sympy's parser on the answer that they score, and on texts of
their own question. While this module scores an answer, the generator's own texts go to the real
functions, and every other text goes to readers of literals and plain expressions.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any, get_type_hints

import reasoning_gym
import sympy
from reasoning_gym.factory import DATASETS

from sdjax.graders.math import safe_parse
from sdjax.graders.workers.worker import restart_clock

# A call for questions returns after this time with what it has, at least one.
ENOUGH_S = 20.0
# Questions that a worker keeps, because the answers of a group share theirs.
KEPT = 4096


def call(function: str, *arguments: Any) -> Any:
    """Returns the result of a function below: one pool of workers serves all of them."""
    functions: dict[str, Callable[..., Any]] = {
        "questions": questions,
        "full_score": full_score,
        "version": lambda: version("reasoning-gym"),
    }
    return functions[function](*arguments)


def questions(name: str, options: str, start: int, count: int) -> list[tuple[str, str]] | str:
    """Returns the (question, answer) of up to `count` items of a generator, from item `start` on.

    There are fewer if they take longer than ENOUGH_S, and none if the generator has run out. An
    answer of "" means that the generator states none. `options` is the generator's configuration as
    JSON text. If the name or the options are wrong, the result is a text that says why.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.4) or sorted(DATASETS)
        return f"task.name is {name!r}: no data set of reasoning-gym; near it: {', '.join(near)}"
    if wrong := _wrong_type(name, json.loads(options)):
        return wrong
    try:
        _generator(name, options)
    except (AssertionError, TypeError, ValueError) as error:
        return f"task.options does not suit reasoning-gym's {name}: {error}"
    except MemoryError:
        return f"task.name is {name!r}: it lays out its questions in more memory than a worker has"
    found: list[tuple[str, str]] = []
    began = time.monotonic()
    for index in range(start, start + count):
        try:
            item = _item(name, options, index)
        except IndexError:
            break
        answer = item["answer"]
        found.append((item["question"], "" if answer is None else str(answer)))
        if time.monotonic() - began > ENOUGH_S:
            break
    return found


def _wrong_type(name: str, options: Mapping[str, Any]) -> str:
    """Returns a message about an option of another type than the generator's field, or ""."""
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    hints = get_type_hints(DATASETS[name][1])
    for option, value in options.items():
        hint = hints.get(option)
        fits = type(value) is hint or (hint is float and type(value) is int)
        if hint in words and not fits:
            return f"task.options.{option} is {value!r}: must be {words[hint]}"
    return ""


def full_score(name: str, options: str, index: int, answer: str, limit_s: float) -> bool:
    """Returns whether an answer to question `index` of a generator gets the full score.

    Only the scoring must end within `limit_s` seconds; a worker may first have to generate the
    question. `options` is the generator's configuration as JSON text.
    """
    question = _item(name, options, index)
    restart_clock(limit_s)
    with _harmless(frozenset(_texts(question))):
        return bool(_generator(name, options).score_answer(answer, question) >= 1)


@functools.cache
def _generator(name: str, options: str) -> Any:
    random.seed(0)
    return reasoning_gym.create_dataset(name, **json.loads(options))


@functools.lru_cache(maxsize=KEPT)
def _item(name: str, options: str, index: int) -> dict[str, Any]:
    generator = _generator(name, options)
    random.seed(f"{options} {index}")
    return generator[index]


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts in a question."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


@contextlib.contextmanager
def _harmless(own: frozenset[str]) -> Iterator[None]:
    """Replaces `eval` and sympy's parser in every module of reasoning-gym, and restores them.

    Texts in `own` still go to the real functions.
    """
    parse, evaluate = sympy.parse_expr, eval

    def safe_expression(text: str, *arguments: Any, **options: Any) -> Any:
        read = parse if text in own else safe_parse.parse
        return read(text, *arguments, **options)

    def safe_eval(text: str) -> Any:
        return evaluate(text, {"__builtins__": {}}) if text in own else ast.literal_eval(text)

    modules = [m for n, m in sys.modules.copy().items() if n.startswith("reasoning_gym.")]
    kept: list[tuple[ModuleType, str, Any]] = [(sympy, "parse_expr", parse)]
    for module in modules:
        if vars(module).get("parse_expr") is parse:
            kept.append((module, "parse_expr", parse))
    for module, attribute, _ in kept:
        setattr(module, attribute, safe_expression)
    for module in modules:
        vars(module)["eval"] = safe_eval
    try:
        yield
    finally:
        for module, attribute, value in kept:
            setattr(module, attribute, value)
        for module in modules:
            del vars(module)["eval"]
