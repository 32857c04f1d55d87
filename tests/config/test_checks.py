"""Numbers that no float32 holds are refused by every field of every config that takes a float."""

import dataclasses
import importlib
import pkgutil
import typing
from typing import Any

import pytest

from sdjax import config, tasks
from sdjax.errors import UserError
from sdjax.tasks import arithmetic, countdown

NEEDED = {
    **{name: "x" for name in ("out", "source", "run")},
    **{"runs": ("x",), "train": ("x",), "task": arithmetic.Arithmetic()},
    "tasks": {"countdown": countdown.Countdown()},
}
BAD = (float("nan"), float("inf"), float("-inf"), 1e39, -1e39, 1e-39)


def sections() -> dict[str, type]:
    """Returns every dataclass of sdjax.config and every task's config, by name."""
    for module in pkgutil.iter_modules(tasks.__path__):
        importlib.import_module(f"sdjax.tasks.{module.name}")
    found = [c for c in vars(config).values() if dataclasses.is_dataclass(c)]
    found += config.TaskConfig.__subclasses__()
    for job in typing.get_args(config.Job):
        assert job in found, job
    return {c.__name__: c for c in found if c.__module__.startswith("sdjax.")}


def takes_a_float(hint: Any) -> bool:
    return hint is float or any(map(takes_a_float, typing.get_args(hint)))


FIELDS = [
    (cls, field.name)
    for cls in sections().values()
    for field in dataclasses.fields(cls)
    if takes_a_float(typing.get_type_hints(cls)[field.name])
]


def test_the_sweep_knows_the_fields():
    names = {f"{cls.__name__}.{name}" for cls, name in FIELDS}
    assert {"Optim.eps", "Loss.token_clip", "Traces.shares", "LiveCodeBench.train_share"} <= names
    assert len(FIELDS) > 50


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_float_that_is_not_finite_or_out_of_range_is_refused_by_name(cls, name, bad):
    hint = typing.get_type_hints(cls)[name]
    value = {"a": bad} if typing.get_origin(hint) is dict else bad
    given = {
        f.name: NEEDED[f.name]
        for f in dataclasses.fields(cls)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    with pytest.raises(
        UserError, match=rf"(^|\.){name}(\.a)? is .*must be 0 or a number of a size"
    ):
        cls(**given | {name: value})


def test_numbers_inside_the_options_of_a_task_are_checked_too():
    with pytest.raises(UserError, match=r"task\.options\.weights is nan"):
        arithmetic.Arithmetic(options={"weights": [0.5, float("nan")]})


@pytest.mark.parametrize("temperature", [1e-7, 1e-30, -1.0])
def test_a_temperature_that_overflows_the_logits_is_refused(temperature):
    with pytest.raises(UserError, match=r"eval\.temperature is .*must be 0, .* or at least 1e-6"):
        config.Eval(temperature=temperature)


@pytest.mark.parametrize(("name", "value"), [("eps", 0.0), ("eps", -1e-8), ("weight_decay", -0.1)])
def test_an_optimizer_that_would_divide_by_zero_or_grow_the_weights_is_refused(name, value):
    with pytest.raises(UserError, match=rf"optim\.{name} is "):
        config.Optim(**{name: value})
