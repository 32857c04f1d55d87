"""Counts what one training step runs: functions, files, and frames above the divergence.

    python dev/trace_step.py          # three numbers, then the frames and the functions by file

A tiny SDPO training takes one step on the CPU. `sys.setprofile` sees every call of a function of
sdjax, in every thread. A step is one iteration of the loop in training/loop.py, from the draw to
the warnings, without the evaluation. JAX's caches are cleared before the step, so tracing of
each program counts. Lambdas count; comprehensions do not, since newer Pythons inline them.
"""

from __future__ import annotations

import collections
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import jax  # noqa: E402

import sdjax  # noqa: E402
from sdjax.main import main  # noqa: E402

PACKAGE = str(Path(sdjax.__file__).parent) + "/"
INLINED = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
DIVERGENCE = "objectives/divergences.py"

TRAINING = """
from sdjax import config as c
from sdjax.tasks.countdown import Countdown

config = c.Train(
    out={out!r},
    task=Countdown(name="times", needs="*", held_out=4),
    steps=1,
    model=c.Model(path="package:sdjax.tiny", compute_dtype="float32", remat="none"),
    rollout=c.Rollout(prompts_per_step=2, group_size=2, max_prompt_tokens=64,
                      max_completion_tokens=32),
    reprompt=c.Reprompt(max_tokens=352, success_threshold=-1.0),
    optim=c.Optim(microbatch=4),
    eval=c.Eval(every=0, k=1, examples=1, max_completion_tokens=8),
    checkpoint=c.Checkpoint(every=0, export=False),
    log=c.Log(progress=False, to=(), alternatives=0),
)
"""


class Trace:
    """The functions of sdjax that were called, by file, and the longest stack to the divergence."""

    def __init__(self) -> None:
        self.functions: dict[str, set[str]] = collections.defaultdict(set)
        self.frames: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Notes a call; `sys.setprofile` calls this."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name in INLINED:
            return
        name = f"{code.co_qualname}:{code.co_firstlineno}"
        file = code.co_filename.removeprefix(PACKAGE)
        self.functions[file].add(name)
        if file == DIVERGENCE:
            frames = []
            at: FrameType | None = frame
            while at is not None:
                if at.f_code.co_filename.startswith(PACKAGE) and at.f_code.co_name not in INLINED:
                    place = at.f_code.co_filename.removeprefix(PACKAGE)
                    frames.append(f"{place}: {at.f_code.co_qualname}")
                at = at.f_back
            self.frames = max(self.frames, frames, key=len)

    def begun_by(self, function: Any) -> Any:
        """Returns `function` so that counting begins with its call."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            jax.clear_caches()
            switch(self)
            return function(*args, **kwargs)

        return counted

    def without(self, function: Any) -> Any:
        """Returns `function` with its calls left out, if counting has begun."""

        def uncounted(*args: Any, **kwargs: Any) -> Any:
            before = sys.getprofile()
            switch(None)
            try:
                return function(*args, **kwargs)
            finally:
                switch(before)

        return uncounted

    def ended_with(self, function: Any) -> Any:
        """Returns `function` so that counting ends when it returns."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            finally:
                switch(None)

        return counted


def switch(profile: Any) -> None:
    """Sets the profile function of this thread and of threads that start later."""
    threading.setprofile(profile)
    sys.setprofile(profile)


def traced() -> Trace:
    """Trains for one step and returns what it ran."""
    from sdjax.logs.writers import Writer
    from sdjax.training import host_step, loop

    trace = Trace()
    host_step.sample_groups = trace.begun_by(host_step.sample_groups)
    loop.evaluate = trace.without(loop.evaluate)
    # The last call of an iteration that saves no checkpoint.
    Writer.warn = trace.ended_with(Writer.warn)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "training.py"
        file.write_text(TRAINING.format(out=str(Path(folder) / "out")))
        assert main(["--config", str(file)]) == 0
    return trace


if __name__ == "__main__":
    found = traced()
    print(f"functions  {sum(map(len, found.functions.values()))}")
    print(f"files      {len(found.functions)}")
    print(f"frames     {len(found.frames)} from main to the divergence")
    print("\n".join(f"  {frame}" for frame in reversed(found.frames)))
    for file, names in sorted(found.functions.items()):
        print(f"{file} ({len(names)}): {', '.join(sorted(n.split(':')[0] for n in names))}")
