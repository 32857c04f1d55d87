"""Scores tasks of lm-evaluation-harness (the library lm_eval), in evaluations and in training."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import config
from sdjax.analysis import accuracy, markdown
from sdjax.errors import Stopped, UserError
from sdjax.io import lease
from sdjax.io.files import to_json, write_text
from sdjax.parallel import hosts
from sdjax.training.loaded_model import LoadedModel

HINT = "pip install 'sdjax[lm-eval]'"
YAML = (".yaml", ".yml")
DRAWS = 1000
"""Of the bootstrap, for standard errors without a formula."""

FILE, FOLDER = "lm_eval.json", "lm_eval"
"""In the directory of an evaluation: figures by requested task, and the graded documents."""

Figures = dict[str, dict[str, Any]]
"""What lm_eval measured: by task or group its documents, and value, low and high of its metrics."""


def check(cfg: config.Harness) -> None:
    """Raises UserError unless lm_eval is installed and can load the tasks, with their documents.

    Call it before weights are loaded. Without tasks it does nothing.
    """
    if not cfg.tasks:
        return
    manager = _manager(_own(cfg))
    for name in cfg.tasks:
        with _named(name):
            manager.load([name])


def score(
    model: LoadedModel,
    weights: Any,
    cfg: config.Harness,
    sampling: config.Eval,
    thinking: bool | None,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[str, Figures, list[dict]]]:
    """Yields the name of each task that the config lists, its figures, and its graded documents.

    Every process of several computes the same.

    Args:
        model: The model, with its local sampler.
        weights: What the sampler reads.
        cfg: Which tasks.
        sampling: How completions are drawn, where `cfg.sampling` is eval.
        thinking: Whether the chat template enables thinking; None leaves that to the template.
        names: Those of the tasks to score; None: all.

    Raises:
        UserError: A task cannot be scored, or a figure is not finite.
    """
    from lm_eval import simple_evaluate

    from sdjax.training.lm_adapter import HarnessModel

    manager = _manager(_own(cfg))
    adapter = HarnessModel(
        model, weights, thinking=thinking, seed=sampling.seed, slots=sampling.slots
    )
    for name in cfg.tasks if names is None else names:
        hosts.note(f"lm_eval: {name}")
        with _named(name):
            results: Any = simple_evaluate(
                model=adapter,
                tasks=[name],
                num_fewshot=cfg.fewshot,
                limit=cfg.limit or None,
                bootstrap_iters=DRAWS,
                apply_chat_template=cfg.chat_template,
                fewshot_as_multiturn=cfg.chat_template,
                gen_kwargs=_drawn_as(sampling) if cfg.sampling == "eval" else None,
                task_manager=manager,
            )
        documents = [row for rows in results.get("samples", {}).values() for row in rows]
        yield name, figures_of(results), documents


def figures_of(results: Mapping[str, Any]) -> Figures:
    """Returns the figures in what lm_eval's simple_evaluate returned.

    Raises UserError for a value that is not finite.
    """
    out: Figures = {}
    for task, measured in results["results"].items():
        documents, found = results.get("samples", {}).get(task, ()), {}
        for key, value in measured.items():
            name, _, rule = key.partition(",")
            if not rule or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise UserError(f"lm_eval: {name} of {task} is {value}: leave the task out")
            values = [row.get(name) for row in documents if row["filter"] == rule]
            span = _interval(float(value), measured.get(f"{name}_stderr,{rule}"), values)
            found[name if rule == "none" else f"{name}/{rule}"] = {"value": float(value), **span}
        count = results.get("n-samples", {}).get(task, {}).get("effective")
        out[task] = {"documents": count, "metrics": found}
    return out


def _interval(value: float, error: Any, values: Sequence[Any]) -> dict[str, float | None]:
    """Returns the ends of the 95% interval of a figure, None where nothing tells them.

    A mean of shares has that of sdjax's own accuracies, which has a width at 0 and 1 too. Another
    figure has two standard errors, as far as lm_eval gives one.

    Args:
        value: The figure.
        error: lm_eval's standard error, or a text such as N/A.
        values: Those of the documents, if the figure is made of them.
    """
    shares = [float(x) for x in values if isinstance(x, bool | int | float) and 0 <= x <= 1]
    if shares and len(shares) == len(values) and math.isclose(np.mean(shares), value):
        (found,) = accuracy.intervals(np.array([shares]))
        return {"low": found.low, "high": found.high}
    if isinstance(error, int | float) and math.isfinite(error):
        return {"low": value - 1.96 * error, "high": value + 1.96 * error}
    return {"low": None, "high": None}


def metrics(figures: Figures) -> dict[str, float]:
    """Returns the metrics that training logs, lm_eval/TASK/METRIC."""
    return {
        f"lm_eval/{task}/{name}": found["value"]
        for task, of in figures.items()
        for name, found in of["metrics"].items()
    }


def to_markdown(figures: Figures) -> str:
    """Returns a Markdown table with one row per metric; figures are as lm_eval gives them."""
    rows = []
    for task, of in figures.items():
        for name, found in of["metrics"].items():
            low, high = found["low"], found["high"]
            span = "" if low is None else f" ({low:.4f} to {high:.4f})"
            count = "" if of["documents"] is None else str(of["documents"])
            rows.append([task, name, f"{found['value']:.4f}{span}", count])
    return markdown.table(["lm_eval", "metric", "value (95% interval)", "documents"], rows)


def read(out: Path) -> dict[str, Figures]:
    """Returns the figures of the tasks that an evaluation has scored already, by requested task."""
    file = out / FILE
    done = json.loads(file.read_text()) if jax.process_index() == 0 and file.exists() else {}
    return hosts.of_first(done)


def write(
    out: Path, done: Mapping[str, Figures], task: str, documents: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the graded documents of a requested task, and then the figures of all done so far."""
    from lm_eval.utils import handle_non_serializable

    texts = (json.dumps(row, default=handle_non_serializable) for row in documents)
    lines = "".join(to_json(json.loads(text)) + "\n" for text in texts)
    name = Path(task).stem if task.endswith(YAML) else task
    lease.make_folder(out / FOLDER)
    write_text(out / FOLDER / f"{name}.jsonl", lines)
    write_text(out / FILE, json.dumps(done, indent=2) + "\n")


def _drawn_as(sampling: config.Eval) -> dict[str, Any]:
    """Returns the settings of `eval` as lm_eval's gen_kwargs."""
    return {
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_gen_toks": sampling.max_completion_tokens,
    }


def _own(cfg: config.Harness) -> bool:
    """Returns whether all tasks are YAML files, so that lm_eval's index is not needed."""
    return all(name.endswith(YAML) for name in cfg.tasks)


@functools.cache
def _manager(own: bool) -> Any:
    """Returns lm_eval's index of tasks, empty for `own` ones; indexing takes seconds.

    Raises UserError if lm_eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm_eval.tasks needs lm-evaluation-harness ({error}): {HINT}") from None
    # Its bootstrap would fork this process, and a fork of one with devices may hang.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    return TaskManager(include_defaults=not own)


@contextmanager
def _named(task: str) -> Iterator[None]:
    """Turns what lm_eval raises at a task into a UserError of one line."""
    try:
        yield
    except (UserError, Stopped, jax.errors.JaxRuntimeError):
        raise
    # lm_eval and the tasks' own code raise errors of any class.
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        remedy = HINT if isinstance(error, ImportError) else "`lm_eval ls tasks` lists names"
        raise UserError(f"lm_eval.tasks has {task!r}: {reason}; {remedy}") from error
