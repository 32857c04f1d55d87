"""Where a training is: what a checkpoint keeps beside the arrays, to go on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import jax
from flax import nnx

from sdjax import config
from sdjax.data.pipeline import Batches
from sdjax.errors import WriteError
from sdjax.learner.checkpoint import Checkpoints, abstract
from sdjax.learner.state import TrainState
from sdjax.rollout.engine.sampler import LocalSampler
from sdjax.training import adapters
from sdjax.training.loaded_model import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Skips:
    """Updates that were skipped because their loss or gradient was not finite."""

    in_row: int = 0
    """Up to the last one."""
    total: int = 0

    def after(self, skipped: Sequence[bool]) -> Skips:
        """Returns the counts after further updates, each skipped or not."""
        in_row = self.in_row
        for was in skipped:
            in_row = in_row + 1 if was else 0
        return Skips(in_row=in_row, total=self.total + sum(map(bool, skipped)))


@dataclass(kw_only=True)
class Progress:
    """Where a run is. All but the arrays is what a checkpoint keeps in JSON."""

    state: TrainState
    step: int
    """Updates are done up to this one."""
    data: dict[str, Any]
    """Position of the examples after it."""
    history: list[dict]
    """The evaluations so far."""
    unscored: dict[str, float] | None
    """Metrics of the step, until its evaluation, if it has one, is done and they are written."""
    skips: Skips


def _sizes(shop: LoadedModel) -> dict[str, int]:
    return {name: int(size) for name, size in shop.mesh.shape.items()}


def how_to_go_on(now: Progress, cfg: config.Train) -> str:
    """Returns what to tell the user whose signal has ended the run."""
    if not cfg.checkpoint.every:
        return f"after step {now.step}, without a checkpoint, since checkpoint.every is 0"
    if not now.step:
        return "before the end of the first step; with --resume it starts again"
    return f"the checkpoint of step {now.step} is written; --resume goes on from it"


def start(
    cfg: config.Train,
    shop: LoadedModel,
    init: Callable[[nnx.State], TrainState],
    shardings: TrainState,
    order: Batches,
    saved: Checkpoints,
) -> Progress:
    """Returns where a run begins: anew, or at the newest checkpoint that is whole."""
    newest = saved.begin(resume=cfg.resume)
    if newest is None:
        return Progress(
            state=init(shop.load()),
            step=0,
            data=order.get_state(),
            history=[],
            unscored={},
            skips=Skips(),
        )
    like = jax.eval_shape(init, shop.abstract)
    train_state, host = saved.restore(newest, abstract(like, shardings))
    order.set_state(host["data"])
    if isinstance(shop.sampler, LocalSampler) and host["mesh"] == _sizes(shop):
        shop.sampler.fitted.update({int(k): v for k, v in host["slots"].items()})
    return Progress(
        state=adapters.with_base(train_state, shop, host),
        step=newest,
        data=host["data"],
        history=host["history"],
        unscored=host["unscored"],
        skips=Skips(**host["skips"]),
    )


def save(
    saved: Checkpoints,
    now: Progress,
    shop: LoadedModel,
    model: config.Model,
    score: float | None = None,
) -> None:
    """Starts saving where the run is."""
    host = {
        "data": now.data,
        "history": now.history,
        "unscored": now.unscored,
        "skips": asdict(now.skips),
        "mesh": _sizes(shop),
        # They were chosen by the memory that was free, and the products of more or fewer rows may
        # round otherwise.
        "slots": {str(k): int(v) for k, v in shop.sampler.fitted.items()}
        if isinstance(shop.sampler, LocalSampler)
        else {},
    } | adapters.base_of(now.state, model)
    # It is written while the run goes on, and changes these.
    saved.save(now.step, now.state, json.loads(json.dumps(host)), score)


def what_is_safe(saved: Checkpoints) -> str:
    """Returns the end of a message: what a run that has to end leaves behind."""
    with suppress(WriteError):
        saved.wait()
    steps = saved.steps()
    if not steps:
        return "there is no checkpoint yet; make room or choose another out, and start again"
    return f"the checkpoint of step {steps[-1]} is whole: make room and go on with --resume"
