"""An update that was not finite: a run that gives up saves it, and --replay computes it again.

OUT/nonfinite/STEP.npz holds its batch; the checkpoint OUT/nonfinite/STEP the state before it.
"""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import storage
from sdjax.io.files import replacing
from sdjax.io.storage import Folder
from sdjax.learner import adamw, update
from sdjax.learner import state as states
from sdjax.learner.batch import Batch, ContextRows, Packed, Rows, Samples
from sdjax.learner.checkpoint import Checkpoints, abstract
from sdjax.learner.objective import NO_SUMS, Objective, microbatch_loss
from sdjax.learner.state import TrainState
from sdjax.models.files import tensors
from sdjax.parallel import hosts, rules
from sdjax.training import host_step, loaded_model, resume
from sdjax.training.host_step import StepResult, StepSetup
from sdjax.training.loaded_model import LoadedModel
from sdjax.training.resume import Progress


def give_up(setup: StepSetup, progress: Progress, result: StepResult, out: Folder) -> NoReturn:
    """Saves the last update of a step and the state before it, then raises UserError.

    `progress` is where the run was before the step, but with the skips of the step. `result` is
    what its updates left; the last one was skipped, so its state is that before it. `out` is the
    run directory.
    """
    step = progress.step + 1
    folder = out.local / "nonfinite"
    packed, placed = result.last
    if placed.rows.old_logprobs is not None:
        old = multihost_utils.process_allgather(placed.rows.old_logprobs, tiled=True)
        packed = dataclasses.replace(
            packed, rows=dataclasses.replace(packed.rows, old_logprobs=np.asarray(old))
        )
    if jax.process_index() == 0:
        # An earlier attempt of the run may have left one.
        shutil.rmtree(folder / str(step), ignore_errors=True)
    saved = Checkpoints(folder, config.Checkpoint(keep=1))
    saved.save(step, result.state, resume.base_of(result.state, setup.cfg.model))
    saved.close()
    file = folder / f"{step}.npz"
    if jax.process_index() == 0:
        with replacing(file) as new, new.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **dict(_arrays(packed)))
    file = out.place / "nonfinite" / file.name
    raise UserError(
        f"step {step}: loss or gradient not finite in {progress.skips.in_row} updates in a row, "
        f"the last one in {file}: look at it with --replay {file}"
    )


def _arrays(part: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the path and the array of each field of a batch that is not None."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, dict):
            for name, rows in value.items():
                yield from _arrays(rows, f"{prefix}{field.name}.{name}.")
        elif dataclasses.is_dataclass(value):
            yield from _arrays(value, f"{prefix}{field.name}.")
        elif value is not None:
            yield prefix + field.name, np.asarray(value)


def load(file: Any) -> Batch:
    """Returns the batch that `give_up` saved; raises UserError for any other file."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            by_path = {path: arrays[path] for path in arrays.files}
        return Batch(**_part(Batch, by_path, ""))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or "not a batch that a run has saved"
        raise UserError(
            f"replay is {str(file)!r}: {why}; give OUT/nonfinite/STEP.npz of a run that stopped at "
            "optim.most_skipped"
        ) from error


PARTS: dict[str, type] = {
    "rows": Rows, "samples": Samples, "student": ContextRows, "packed": Packed
}  # fmt: skip
OPTIONAL = ("old_logprobs", "segment_ids", "route")


def _part(cls: type, by_path: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Returns the fields of a part of a batch; an optional field without an array is None."""
    fields: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(cls)):
        path = prefix + name
        if name == "contexts":
            names = dict.fromkeys(k.split(".")[2] for k in by_path if k.startswith(f"{path}."))
            fields[name] = {
                n: ContextRows(**_part(ContextRows, by_path, f"{path}.{n}.")) for n in names
            }
        elif name in PARTS and any(key.startswith(f"{path}.") for key in by_path):
            fields[name] = PARTS[name](**_part(PARTS[name], by_path, f"{path}."))
        else:
            fields[name] = by_path.get(path) if name in OPTIONAL else by_path[path]
    return fields


def run(cfg: config.Train) -> None:
    """Computes a saved update again; prints its loss, gradient norm and first non-finite value."""
    assert cfg.replay is not None
    file = storage.place(cfg.replay, "replay")
    batch = load(file)
    if cfg.alarm.teacher_off and not batch.rows.contexts:  # after the alarm
        cfg = cfg.without_teacher()
    saved = Checkpoints(file.parent, cfg.checkpoint)
    step = int(file.stem) if file.stem.isdigit() else -1
    if step not in saved.steps():
        raise UserError(
            f"replay is {cfg.replay!r}: the checkpoint {file.parent / file.stem} is gone"
        )
    saved.check(step)
    model = loaded_model.open_model(cfg.model, cfg.mesh, lora=cfg.lora)
    model = loaded_model.with_teachers(model, cfg)
    shardings = host_step.of_state(cfg, model)
    init = states.initialiser(adamw.make(cfg.optim), cfg.teacher, shardings)
    train_step = update.make_train_step(
        model.graphdef, Objective.of(cfg), cfg.optim, shardings, cfg.model.remat
    )
    with jax.set_mesh(model.mesh):
        like = jax.eval_shape(init, model.abstract)
        state, host = saved.restore(step, abstract(like, shardings))
        state = resume.with_teachers(resume.with_base(state, model, host), model, shardings)
        placed = hosts.place(batch, update.batch_shardings(batch, model.mesh))
        first = next(_not_finite(batch, placed, state, model, shardings, cfg), "nothing")
        _, metrics, _ = train_step(state, placed)
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    hosts.note(
        f"step {step}  loss {numbers['loss/total']:.6g}  gradient norm "
        f"{numbers['optim/grad_norm']:.6g}\nnot finite, first: {first}"
    )


def _not_finite(
    batch: Batch,
    placed: Batch,
    state: TrainState,
    model: LoadedModel,
    shardings: TrainState,
    cfg: config.Train,
) -> Iterator[str]:
    """Yields a description of each non-finite value, in the order in which an update meets them.

    Args:
        batch: The update's batch on the host.
        placed: The same on the devices.
        state: The state before the update.
        model: Its graph and mesh.
        shardings: Of the state.
        cfg: The config of the training.
    """
    for name, array in _arrays(batch):
        if array.dtype == np.float32 and not np.isfinite(array).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            yield f"the batch's {name} at {list(at)}"
    teacher: Any = state.teacher_params
    if isinstance(teacher, dict):
        teacher = {name: other.params for name, other in teacher.items()}
    for whose, params in (("student", state.params), ("teacher", teacher)):
        for name in tensors.not_finite(params) if params is not None else ():
            yield f"the {whose}'s parameter {name}"

    def gradient(state: TrainState, micro: Batch) -> tuple[nnx.State, Any]:
        teacher_params = update.teacher_on_device(state, shardings)
        near = dataclasses.replace(state, teacher_params=teacher_params)
        loss = partial(microbatch_loss, model.graphdef, Objective.of(cfg))
        return jax.grad(loss, has_aux=True)(state.params, NO_SUMS, near, micro)

    on_all = rules.replicated(model.mesh)
    gradient_of = jax.jit(gradient, out_shardings=(shardings.params, on_all))
    for micro in range(int(batch.microbatches)):
        rows = jax.tree.map(lambda x, i=micro: x[i], placed.rows)
        grads, (sums, record) = gradient_of(state, dataclasses.replace(placed, rows=rows))
        real = batch.rows.sample[micro] >= 0
        for whose in ("student", "teacher"):
            if (values := getattr(record, f"{whose}_logprob")) is None:
                continue
            values = np.asarray(values)
            if (wrong := real & ~np.isfinite(values)).any():
                row, token = (int(i) for i in np.argwhere(wrong)[0])
                which = int(batch.rows.sample[micro, row, token])
                index = int(batch.rows.index[micro, row, token])
                yield f"the {whose}'s log-probability of token {index} of completion {which}"
        for name, value in (sums.total | sums.largest).items():
            if not np.isfinite(float(value)):
                yield f"the metric {name} of microbatch {micro}"
        for name in tensors.not_finite(grads):
            yield f"the gradient by {name} in microbatch {micro}"
