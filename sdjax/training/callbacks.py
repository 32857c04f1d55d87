"""Calls the user's functions `on_step` and `on_evaluation`, which may end a run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from sdjax import config
from sdjax.errors import UserError
from sdjax.parallel import hosts


@dataclass(kw_only=True)
class Callbacks:
    """The functions of a run's config, and the name of the one that has ended the run."""

    cfg: config.Train | config.SFT
    ended_by: str = ""
    """Name of the function that asked to stop; empty while none has."""

    def end_run(
        self, name: Literal["on_step", "on_evaluation"], step: int, metrics: Mapping[str, Any]
    ) -> bool:
        """Returns whether the function of this name ends the run after a step.

        Process 0 calls it with a copy of the metrics as floats, and all processes get its answer.
        Raises UserError for what it raises, and for an answer other than True, "stop", False and
        None.
        """
        function = getattr(self.cfg, name)
        if function is None:
            return False
        primary = jax.process_index() == 0
        answer = hosts.of_first(_answer(name, function, step, metrics) if primary else None)
        if isinstance(answer, str):
            raise UserError(answer)
        if answer:
            self.ended_by = name
        return bool(answer)


def _answer(
    name: str, function: Callable[..., object], step: int, metrics: Mapping[str, Any]
) -> bool | str:
    """Returns whether a function asks to stop, or the line that says what is wrong with it."""
    numbers = {key: float(value) for key, value in metrics.items()}
    try:
        answer = function(step, numbers)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}"
        return f"{name} raised {type(error).__name__} after step {step}: {error} ({where}): mend it"
    if answer is None or isinstance(answer, bool | np.bool_):
        return bool(answer)
    if isinstance(answer, str) and answer == "stop":
        return True
    return f"{name} returned {answer!r} after step {step}: return True or 'stop' to end the run"
