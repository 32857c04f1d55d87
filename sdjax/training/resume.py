"""Where a run is: starts it, saves it in a checkpoint, and restores it exactly."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import lease, storage
from sdjax.io.storage import Folder
from sdjax.learner.checkpoint import Checkpoints, abstract, saved_steps
from sdjax.learner.state import TrainState
from sdjax.models.files import tensors
from sdjax.models.network import lora
from sdjax.rollout.engine.sampler import LocalSampler
from sdjax.training.host_step import Initialiser, Skips, StepSetup
from sdjax.training.loaded_model import LoadedModel


@dataclass(kw_only=True)
class Progress:
    """Where a run is; the loop changes it. A checkpoint keeps all but the arrays as JSON."""

    state: TrainState
    step: int
    """Steps that are done."""
    data: dict[str, Any]
    """Position in the examples after these steps."""
    history: list[dict]
    """The evaluations so far; an evaluation appends to this list."""
    unscored: dict[str, float] | None
    """Metrics of the last step from its end until they are written. A checkpoint has them if a
    signal came during the step's evaluation. None: they are written."""
    skips: Skips
    teacher_off: bool = False
    """Whether alarm.teacher_off has switched the teacher off."""

    @property
    def logged(self) -> int:
        """The last step whose metrics are written; -1 without one."""
        return self.step - (self.unscored is not None)


def start(setup: StepSetup, saved: Checkpoints) -> Progress:
    """Returns where a run begins: at the newest whole checkpoint, or at step 0 without one."""
    functions, sampler = setup.functions, setup.model.sampler
    step, state, host = restore(
        saved, setup.model, functions.init, functions.shardings, resume=setup.cfg.resume
    )
    if host is None:
        data = setup.order.get_state()
        return Progress(state=state, step=0, data=data, history=[], unscored={}, skips=Skips())
    setup.order.set_state(host["data"])
    if isinstance(sampler, LocalSampler) and host["mesh"] == _sizes(setup.model):
        sampler.fitted.update({int(k): v for k, v in host["slots"].items()})
    return Progress(
        state=state,
        step=step,
        data=host["data"],
        history=host["history"],
        unscored=host["unscored"],
        skips=Skips(**host["skips"]),
        teacher_off=host.get("teacher_off", False),  # a checkpoint of an earlier version has none
    )


def restore(
    saved: Checkpoints,
    model: LoadedModel,
    init: Initialiser,
    shardings: TrainState,
    *,
    resume: bool,
) -> tuple[int, TrainState, dict[str, Any] | None]:
    """Returns step, state and JSON part of the newest whole checkpoint.

    Without a checkpoint these are 0, the initial state and None.

    Args:
        saved: The checkpoints of the run.
        model: Holds the weights that a run starts from, and those that adapters freeze.
        init: Makes the initial state from the model's params; only its shapes are used to restore.
        shardings: Of the state.
        resume: False raises UserError where there are checkpoints.
    """
    newest = saved.begin(resume=resume)
    if newest is None:
        return 0, with_teachers(init(model.load()), model, shardings), None
    like = jax.eval_shape(init, model.abstract)
    state, host = saved.restore(newest, abstract(like, shardings))
    if bad := tensors.not_finite(state.params):
        raise UserError(
            f"checkpoint {saved.path(newest)}: its parameters hold NaN or infinity (in "
            f"{_listed(bad)}): remove it to go on from an earlier one, or choose another --out"
        )
    return newest, with_teachers(with_base(state, model, host), model, shardings), host


def done(out: str) -> int:
    """Returns the step of the newest checkpoint of a run directory, or 0 without one.

    Other processes than the first may not see the directory; there it is 0.
    """
    if jax.process_index() != 0:
        return 0
    return max(saved_steps(storage.place(out) / "checkpoints"), default=0)


def host_part(progress: Progress, setup: StepSetup) -> dict[str, Any]:
    """Returns the JSON part of a training's checkpoint."""
    sampler = setup.model.sampler
    return {
        "data": progress.data,
        "history": progress.history,
        "unscored": progress.unscored,
        "skips": asdict(progress.skips),
        "teacher_off": progress.teacher_off,
        "mesh": _sizes(setup.model),
        # A resumed run needs the same numbers of slots, because the free memory chose them and
        # matrix products of more or fewer rows may round differently.
        "slots": {str(k): int(v) for k, v in sampler.fitted.items()}
        if isinstance(sampler, LocalSampler)
        else {},
    } | base_of(progress.state, setup.cfg.model)


def save(
    saved: Checkpoints,
    folder: Folder,
    step: int,
    state: TrainState,
    host: dict[str, Any],
    score: float | None = None,
    *,
    passing: bool = False,
) -> None:
    """Copies a run's files to their place, then starts saving a checkpoint.

    Args:
        saved: The checkpoints of the run.
        folder: The run directory; process 0 copies what the run has written so far.
        step: Names the checkpoint.
        state: Its arrays.
        host: Its JSON part; its "unscored" is that of the progress.
        score: The metric that config.Checkpoint.keep_best compares; None: this step has none.
        passing: Whether a signal makes the checkpoint.

    Raises:
        UserError: A parameter is not finite. Such a model is not kept.
    """
    lease.check()
    if bad := tensors.not_finite(state.params):
        saved.wait()
        raise UserError(
            f"step {step}: the parameters hold NaN or infinity (in {_listed(bad)}), so no "
            "checkpoint is written: lower optim.lr, or look at the weights that the run started "
            "from"
        )
    if jax.process_index() == 0:
        folder.push()
    # A copy, because saving is asynchronous and the loop changes the lists in `host`.
    copy = json.loads(json.dumps(host))
    unscored = host["unscored"] is not None
    saved.save(step, state, copy, score, passing=passing, unscored=unscored)


def _listed(names: list[str]) -> str:
    """Returns the first name, and the number of the others."""
    return names[0] + (f" and {len(names) - 1} others" if names[1:] else "")


def base_of(state: TrainState, source: config.Model) -> dict[str, Any]:
    """Returns the part of a checkpoint that names the frozen model; {} without adapters."""
    if state.frozen is None:
        return {}
    return {"base": {"path": source.path, "checksum": lora.checksum(state.frozen)}}


def with_base(state: TrainState, model: LoadedModel, host: dict[str, Any]) -> TrainState:
    """Returns a restored state with the frozen model that its adapters belong to."""
    if model.cfg.lora is None:
        return state
    return replace(state, frozen=load_base(model, host))


def with_teachers(state: TrainState, model: LoadedModel, shardings: TrainState) -> TrainState:
    """Returns a state with the models that teach, where the teacher is another model."""
    placed = shardings.teacher_params
    if not isinstance(placed, dict):
        return state
    loaded = {n: each.load(model.mesh, placed[n]) for n, each in model.teachers.items()}
    return replace(state, teacher_params=loaded)


def load_base(model: LoadedModel, host: dict[str, Any]) -> nnx.State:
    """Returns the frozen model; raises UserError if the adapters were trained on another one."""
    _, frozen = lora.split(model.load())
    assert frozen is not None
    base = host["base"]
    if lora.checksum(frozen) != base["checksum"]:
        raise UserError(
            f"model.path: the weights in {model.folder} are not those that the checkpoint's "
            f"adapters were trained on (then at {base['path']}); give those"
        )
    return frozen


def how_to_resume(progress: Progress, cfg: config.Train | config.SFT) -> str:
    """Returns the message of Stopped: where a signal ended the run. A command follows it."""
    if not cfg.checkpoint.every:
        kept = "without a checkpoint, since checkpoint.every is 0"
        return f"after step {progress.step}, {kept}; start again with"
    if not progress.step:
        return "before the end of the first step; start again with"
    return f"the checkpoint of step {progress.step} is written; go on with"


def what_is_safe(saved: Checkpoints) -> str:
    """Returns the end of an error message: which checkpoint a failed run leaves.

    It waits for a checkpoint that is being written.
    """
    with suppress(UserError):
        saved.wait()
    steps = saved.steps()
    if not steps:
        return "there is no checkpoint yet: start again after that"
    return f"the checkpoint of step {steps[-1]} is whole: go on with --resume after that"


def _sizes(model: LoadedModel) -> dict[str, int]:
    """Returns the size of each axis of the mesh."""
    return {name: int(size) for name, size in model.mesh.shape.items()}
