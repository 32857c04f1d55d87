"""Generates reasoning-gym's questions and scores answers by its rules. Runs in workers only.

Some generators depend on the order of sets, so questions are generated where the hash seed is
fixed. Several generators call `eval` or sympy's parser on the answer that they score. While this
module scores an answer, they get readers of literals and plain expressions instead.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import reasoning_gym
import sympy
from reasoning_gym.factory import DATASETS

from sdjax.graders.math import safe_parse


def call(function: str, *arguments: Any) -> Any:
    """Returns the result of `questions` or `full_score`: one pool of workers serves both."""
    functions: dict[str, Callable[..., Any]] = {"questions": questions, "full_score": full_score}
    return functions[function](*arguments)


def questions(name: str, options: str, start: int, count: int) -> list[tuple[str, str]] | str:
    """Returns the (question, answer) of items `start` to `start + count` of a generator.

    `options` is the generator's configuration as JSON text. If the name or the options are wrong,
    the result is a text that says why.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.4) or sorted(DATASETS)
        return f"task.name is {name!r}: no data set of reasoning-gym; near it: {', '.join(near)}"
    try:
        generator = _generator(name, options)
    except (AssertionError, TypeError, ValueError) as error:
        return f"task.options does not suit reasoning-gym's {name}: {error}"
    items = (generator[index] for index in range(start, start + count))
    return [(item["question"], str(item["answer"])) for item in items]


def full_score(name: str, options: str, index: int, answer: str) -> bool:
    """Returns whether an answer to question `index` of a generator gets the full score.

    `options` is the generator's configuration as JSON text.
    """
    generator = _generator(name, options)
    question = generator[index]
    with _harmless():
        return bool(generator.score_answer(answer, question) >= 1)


@functools.cache
def _generator(name: str, options: str) -> Any:
    return reasoning_gym.create_dataset(name, **json.loads(options))


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Replaces `eval` and sympy's parser in every module of reasoning-gym, and restores them."""
    modules = [m for n, m in list(sys.modules.items()) if n.startswith("reasoning_gym.")]
    kept: list[tuple[ModuleType, str, Any]] = [(sympy, "parse_expr", sympy.parse_expr)]
    for module in modules:
        if vars(module).get("parse_expr") is sympy.parse_expr:
            kept.append((module, "parse_expr", sympy.parse_expr))
    for module, attribute, _ in kept:
        setattr(module, attribute, safe_parse.parse)
    for module in modules:
        vars(module)["eval"] = ast.literal_eval
    try:
        yield
    finally:
        for module, attribute, value in kept:
            setattr(module, attribute, value)
        for module in modules:
            del vars(module)["eval"]
