"""Calls functions of users in a worker process: rewards and graders of their own.

A function is called in one of four ways, which its parameters show:

- `f(completion, row)` gets one completion and all columns of its row.
- `f(completions, rows)`, marked by `sdjax.graders.batched`, gets lists of them.
- A function with a parameter `completions` is called as TRL calls its reward functions: by keyword,
  with `prompts`, `completions` and a list per column.
- A function with a parameter `solution_str` is called as verl calls `compute_score`: by keyword,
  with `data_source`, `solution_str`, `ground_truth` and `extra_info`.

The first two may ask for more by name: `answer`, `truncated`, `messages`. Each may be async.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from sdjax.own_functions import MODULE
from sdjax.records import Grade

MORE = ("answer", "truncated", "messages")
"""What a function may ask for by name beside the completion and its row."""
MARK = "sdjax_batched"
"""The attribute of a function that `sdjax.graders.batched` marks."""
TRL_KEEPS = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not pass on to its reward functions."""
CalledItem = dict[str, Any]
Outcome = dict[str, Any]


def describe(name: str, folders: Sequence[str]) -> dict[str, Any]:
    """Returns how a function is called: its `style`, and whether it is `many` and `asynchronous`.

    Without such a function the result has an `error`, which says why.
    """
    try:
        function = load(name, tuple(folders))
    except BaseException as error:  # also SystemExit of a file that ends itself
        said = str(error) if isinstance(error, LookupError) else _said(error)
        return {"error": said}
    style = _style(function)
    return {
        "style": style,
        "many": style in ("batched", "trl"),
        "asynchronous": _is_asynchronous(function),
    }


def call(
    name: str, folders: Sequence[str], items: Sequence[CalledItem], limit_s: float
) -> list[Outcome]:
    """Returns the outcome of a function for each item, in order.

    An outcome is one of {"reward": number or None}, {"grade": fields}, {"raised": text}, {"wrong":
    text} for what is no reward, and {"late": true}. An item has completion, row, id and MORE.
    """
    function = load(name, tuple(folders))
    style = _style(function)
    if style in ("batched", "trl"):
        return _of_many(function, style, items)
    if _is_asynchronous(function):
        return asyncio.run(_together(function, style, items, limit_s))
    return [_of_one(function, style, item) for item in items]


def warm(place: str, folders: Sequence[str]) -> None:
    """Imports the module of a function, so that no call waits for it; `describe` says if it fails.

    `place` is what stands before the colon of the function's name.
    """
    with contextlib.suppress(BaseException):
        _module(place, tuple(folders))


@functools.cache
def _module(place: str, folders: tuple[str, ...]) -> ModuleType:
    sys.path += [folder for folder in folders if folder not in sys.path]
    return _from_file(place, folders) if place.endswith(".py") else _imported(place)


def load(name: str, folders: tuple[str, ...]) -> Callable[..., Any]:
    """Returns the function of a name; raises LookupError, one line, if there is none."""
    place, _, own = name.rpartition(":")
    module = _module(place, folders)
    function = getattr(module, own, None)
    if function is None:
        near = difflib.get_close_matches(own, dir(module), n=1)
        raise LookupError(
            f"{place} has no function {own}" + (f"; perhaps you meant {near[0]}" if near else "")
        )
    if not callable(function):
        raise LookupError(f"{own} of {place} is {type(function).__name__}, not a function")
    return function


def _imported(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        raise LookupError(
            f"no module {error.name} in the folder of the config, in {Path.cwd()} or installed"
        ) from None


def _from_file(place: str, folders: Sequence[str]) -> ModuleType:
    file = next((f for folder in folders if (f := Path(folder) / place).is_file()), None)
    if file is None:
        raise LookupError(f"no file {place} in the folder of the config or in {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As the loader of configs does: dataclasses look for their module there.
    sys.modules[MODULE] = module
    sys.path.append(str(file.parent))
    spec.loader.exec_module(module)
    return module


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a function written in C
        return {}


def _style(function: Callable[..., Any]) -> str:
    names = _parameters(function)
    if getattr(function, MARK, False):
        return "batched"
    if "completions" in names:
        return "trl"
    return "verl" if "solution_str" in names else "row"


def _is_asynchronous(function: Callable[..., Any]) -> bool:
    method = getattr(function, "__call__", None)  # noqa: B004 (an object with an async __call__)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def _awaited(value: Any) -> Any:
    async def result() -> Any:
        return await value

    return asyncio.run(result()) if inspect.isawaitable(value) else value


def _called(function: Callable[..., Any], style: str, item: CalledItem) -> Any:
    """Returns the value of a function for one item, a coroutine if it is async."""
    row = item["row"]
    if style == "verl":
        model = row.get("reward_model")
        truth = model.get("ground_truth") if isinstance(model, dict) else None
        known = {
            "data_source": row.get("data_source"),
            "solution_str": item["completion"],
            "ground_truth": item["answer"] if truth is None else truth,
            "extra_info": row.get("extra_info"),
        }
        return function(**_accepted(function, known))
    return function(item["completion"], row, **_more(function, [item], lambda v: v[0]))


def _more(
    function: Callable[..., Any], items: Sequence[CalledItem], form: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    """Returns the arguments that a function asks for by name after its first two parameters."""
    asked = list(_parameters(function))[2:]
    return {name: form([item[name] for item in items]) for name in MORE if name in asked}


def _accepted(function: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a function takes by keyword."""
    parameters = _parameters(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    return {name: value for name, value in known.items() if name in parameters}


def _of_many(
    function: Callable[..., Any], style: str, items: Sequence[CalledItem]
) -> list[Outcome]:
    """Returns the outcomes of a function that gets all items at once."""
    texts, rows = [item["completion"] for item in items], [item["row"] for item in items]
    try:
        if style == "batched":
            values = _awaited(function(texts, rows, **_more(function, items, list)))
        else:
            values = _awaited(function(**_accepted(function, _as_trl(texts, items))))
        values = list(values)
    except Exception as error:
        of = f", in a call with {len(items)} completions" if len(items) > 1 else ""
        return [{"raised": _said(error) + of}] * len(items)
    if len(values) != len(items):
        said = f"returned {len(values)} values for {len(items)} completions"
        return [{"wrong": said}] * len(items)
    none_counts = style == "trl"
    return [
        {"reward": None} if value is None and none_counts else _checked(value) for value in values
    ]


def _as_trl(texts: Sequence[str], items: Sequence[CalledItem]) -> dict[str, Any]:
    """Returns the arguments that TRL passes: conversations where the row's prompt is one."""
    rows = [item["row"] for item in items]
    columns = dict.fromkeys(name for row in rows for name in row if name not in TRL_KEEPS)
    known = {name: [row.get(name) for row in rows] for name in columns}
    talks = [isinstance(row.get("prompt"), list) for row in rows]
    return known | {
        "prompts": [
            item["messages"] if talk else item["messages"][-1]["content"]
            for item, talk in zip(items, talks, strict=True)
        ],
        "completions": [
            [{"role": "assistant", "content": text}] if talk else text
            for text, talk in zip(texts, talks, strict=True)
        ],
    }


async def _together(
    function: Callable[..., Any], style: str, items: Sequence[CalledItem], limit_s: float
) -> list[Outcome]:
    """Returns the outcomes of an async function, whose calls run at the same time."""

    async def one(item: CalledItem) -> Outcome:
        try:
            return _checked(await asyncio.wait_for(_called(function, style, item), limit_s))
        except TimeoutError as error:
            # wait_for raises it without a text; the function's own has a frame of the function.
            own = traceback.extract_tb(error.__traceback__)[-1].filename
            late = own.endswith(("asyncio/tasks.py", "asyncio/timeouts.py"))
            return {"late": True} if late else {"raised": _said(error)}
        except Exception as error:
            return {"raised": _said(error)}

    return list(await asyncio.gather(*map(one, items)))


def _of_one(function: Callable[..., Any], style: str, item: CalledItem) -> Outcome:
    try:
        return _checked(_awaited(_called(function, style, item)))
    except Exception as error:
        return {"raised": _said(error)}


def _checked(value: Any) -> Outcome:
    """Returns the outcome of a value: a number, a Grade, or verl's dict with a score."""
    if isinstance(value, dict) and "score" in value:
        others = {name: part for name, part in value.items() if name != "score"}
        outcome = _checked(value["score"])
        return (
            outcome | {"details": others} if "reward" in outcome and _is_json(others) else outcome
        )
    if isinstance(value, Grade):
        reward = _number(value.reward)
        if reward is None:
            return {"wrong": f"returned a Grade with the reward {value.reward!r:.80}"}
        if not _is_json(value.details):
            return {"wrong": "returned a Grade whose details are no JSON values"}
        fields = asdict(value) | {"reward": reward, "correct": bool(value.correct)}
        return {"grade": fields | {"feedback": str(value.feedback)}}
    reward = _number(value)
    if reward is None:
        return {"wrong": f"returned {value!r:.80}"}
    return {"reward": reward}


def _number(value: Any) -> float | None:
    """Returns a finite number, also one of numpy or torch; None for anything else."""
    if isinstance(value, str | bytes) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _said(error: BaseException) -> str:
    """Returns the error on one line, with file and line of the user's code."""
    text = " ".join(str(error).split())[:300]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return said + (
        f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    )


FUNCTIONS: dict[str, Callable[..., Any]] = {"warm": warm, "describe": describe, "call": call}


def serve(function: str, *arguments: Any) -> Any:
    """Returns the result of a function above: one pool of workers serves all of them."""
    return FUNCTIONS[function](*arguments)
