"""Small runs of the train job, and a comparison of two of them."""

from __future__ import annotations

import contextlib
import functools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdjax import config
from sdjax.records import Example, Grade
from sdjax.rollout.engine import sampler
from sdjax.tasks import Task
from sdjax.training import host_step, loaded_model

if TYPE_CHECKING:  # takes 2 seconds, which only tests that read events should pay
    from tensorboardX.proto.event_pb2 import Event


@dataclass(frozen=True, kw_only=True)
class Letters(config.TaskConfig):
    """Any text is an answer; its reward is the share of bytes of the alphabet's first half."""

    questions: int = 64


def load(cfg: Letters, data: config.Data) -> Task:
    def example(side: str, i: int) -> Example:
        letters = "".join(random.Random(f"{side}{i}").choices("abcdefghij", k=4))
        messages = ({"role": "user", "content": f"Say {letters}."},)
        return Example(id=f"{side}-{i}", messages=messages, answer=letters, task="letters")

    def grade(attempt) -> Grade:
        text = attempt.text.encode(errors="replace")
        reward = sum(byte % 2 for byte in text) / max(len(text), 1)
        return Grade(reward=reward, correct=reward > 0.5, details={"prediction": attempt.text[:1]})

    return Task(
        name="letters",
        train=[example("train", i) for i in range(cfg.questions)],
        held_out=[example("held", i) for i in range(cfg.held_out)],
        grader=lambda attempts: [grade(attempt) for attempt in attempts],
    )


def job(model: Path, out: Path, **changes: Any) -> config.Train:
    """Returns a run of 6 steps of 4 prompts x 2, with a checkpoint after every third.

    A change is a field's value, or the values of some of a section's fields.
    """
    made = config.Train(
        out=str(out),
        task=Letters(held_out=4),
        steps=6,
        model=config.Model(path=str(model), compute_dtype="float32", remat="none"),
        rollout=config.Rollout(
            prompts_per_step=4,
            group_size=2,
            temperature=0.7,
            max_prompt_tokens=96,
            max_completion_tokens=6,
        ),
        reprompt=config.Reprompt(max_tokens=160, success_threshold=-1.0),
        optim=config.Optim(microbatch=4, lr=1e-3, warmup_steps=0),
        eval=config.Eval(every=2, k=2, examples=4, batch=4, max_completion_tokens=6),
        checkpoint=config.Checkpoint(every=3, export=False),
        log=config.Log(progress=False, to=(), alternatives=0),
    )
    sections = {n: replace(getattr(made, n), **v) for n, v in changes.items() if type(v) is dict}
    return replace(made, **changes | sections)


_STEPS: dict[str, host_step.StepFunctions] = {}
_programs = functools.cache(sampler.slots.programs)


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Makes runs of this process share their compiled functions if their configs allow it."""
    make, kept = host_step.make_steps, jax.config.jax_persistent_cache_min_compile_time_secs

    def steps(cfg: config.Train, model: loaded_model.LoadedModel) -> host_step.StepFunctions:
        parts = (
            cfg.loss,
            cfg.policy,
            cfg.target,
            cfg.teacher,
            cfg.rollout,
            cfg.log,
            cfg.mesh,
            cfg.lora,
        )
        key = repr((replace(cfg.optim, most_skipped=0), *parts, model.cfg))
        if key not in _STEPS:
            _STEPS[key] = make(cfg, model)
        return _STEPS[key]

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_step, "make_steps", steps)
        patch.setattr(sampler.slots, "programs", _programs)
        yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _is_time(metric: str) -> bool:
    return metric.startswith("time/") or metric.endswith("per_s")


def timeless(path: Path) -> list[dict]:
    """Returns the metrics of a run without those that are times or rates."""
    rows = lines(path / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not _is_time(k)} for row in rows]


def events(file: Path) -> Iterator[Event]:
    """Yields the events of a file of TensorBoard; a cut one at its end is left out."""
    from tensorboardX.proto.event_pb2 import Event

    data = file.read_bytes()
    while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(data[:8], "little")
        if len(data) < 16 + size:
            return
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def board(folder: Path) -> list[tuple[int, str, float]]:
    """Returns step, tag and value of what TensorBoard shows of a run, without times."""
    from tensorboardX.proto.event_pb2 import SessionLog

    shown: list[tuple[int, str, float]] = []
    for file in sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns):
        for event in events(file):
            if event.session_log.status == SessionLog.START:
                shown = [each for each in shown if each[0] < event.step]
            shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return [each for each in shown if not _is_time(each[1])]


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint by their paths."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        state = reader.restore(checkpoint.absolute() / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal(a: Path, b: Path, step: int = 6) -> None:
    """Asserts that two runs wrote the same, except times."""
    assert timeless(a) == timeless(b)
    if (a / "tensorboard").exists():
        assert board(a / "tensorboard") == board(b / "tensorboard")
    for folder in ("answers", "model", "model_adapter"):
        names = sorted(p.name for p in (a / folder).glob("*"))
        assert names == sorted(p.name for p in (b / folder).glob("*"))
        for name in names:
            assert (a / folder / name).read_bytes() == (b / folder / name).read_bytes(), name
    for name in ("rollouts.jsonl", "evaluations.json"):
        assert (a / name).exists() == (b / name).exists()
        assert not (a / name).exists() or (a / name).read_bytes() == (b / name).read_bytes(), name
    saved = [
        sorted(p.name for p in (run / "checkpoints").iterdir() if p.suffix != ".damaged")
        for run in (a, b)
    ]
    assert saved[0] == saved[1]
    ours, theirs = (arrays(run / "checkpoints" / str(step)) for run in (a, b))
    assert ours.keys() == theirs.keys() and ours
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.tobytes() == theirs[name].tobytes(), name
    kept = [json.loads((r / f"checkpoints/{step}/host/metadata").read_text()) for r in (a, b)]
    assert kept[0] == kept[1]
    sums = [json.loads((r / f"checkpoints/{step}/checksums.json").read_text()) for r in (a, b)]
    for one in sums:
        del one["files"]  # every save names the files of arrays anew
    assert sums[0] == sums[1]
