"""The batch of an update that went wrong: saved when a run gives up, and made again to look at.

OUT/nonfinite/STEP.npz holds the batch, and the checkpoint OUT/nonfinite/STEP the state before it.
"""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from sdjax import config
from sdjax.errors import UserError, writing
from sdjax.io import storage
from sdjax.io.storage import Folder
from sdjax.learner import adamw, update
from sdjax.learner import state as states
from sdjax.learner.batch import Batch, Packed, Rows, Samples
from sdjax.learner.checkpoint import Checkpoints, abstract
from sdjax.learner.objective import NO_SUMS, Objective, microbatch_loss
from sdjax.learner.state import TrainState
from sdjax.parallel import hosts, rules
from sdjax.training import adapters, loaded_model
from sdjax.training.loaded_model import LoadedModel
from sdjax.training.resume import Progress


def give_up(
    number: int,
    now: Progress,
    update: tuple[Batch, Batch],
    model: config.Model,
    out: Folder,
    safe: str,
) -> None:
    """Saves a step's last update, as packed and as placed, and the state before it; then raises."""
    folder = out.local / "nonfinite"
    packed, placed = update
    if placed.rows.old_logprobs is not None:
        old = multihost_utils.process_allgather(placed.rows.old_logprobs, tiled=True)
        packed = dataclasses.replace(
            packed, rows=dataclasses.replace(packed.rows, old_logprobs=np.asarray(old))
        )
    if jax.process_index() == 0:
        shutil.rmtree(folder / str(number), ignore_errors=True)  # of an earlier attempt
    saved = Checkpoints(folder, config.Checkpoint(keep=1))
    saved.save(number, now.state, adapters.base_of(now.state, model))
    saved.close()
    file = folder / f"{number}.npz"
    if jax.process_index() == 0:
        with writing(file):
            np.savez(file, allow_pickle=False, **dict(_arrays(packed)))
    file = out.place / "nonfinite" / file.name
    raise UserError(
        f"step {number}: loss or gradient not finite in {now.skips.in_row} updates in a row, the "
        f"last one in {file}: look at it with --replay {file}; {safe}"
    )


def _arrays(part: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of a batch, each with its path; what is None has none."""
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            yield from _arrays(value, f"{prefix}{f.name}.")
        elif value is not None:
            yield prefix + f.name, np.asarray(value)


def load(file: Any) -> Batch:
    """Returns the batch that `give_up` saved in a file."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        return Batch(**_part(Batch, found, ""))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or "not a batch that a run has saved"
        raise UserError(
            f"replay is {str(file)!r}: {why}; give OUT/nonfinite/STEP.npz of a run that stopped at "
            "optim.most_skipped"
        ) from error


PARTS: dict[str, type] = {"rows": Rows, "samples": Samples, "student": Packed, "teacher": Packed}


def _part(cls: type, found: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Returns the fields of a part of a batch; None stands for what is optional and not found."""
    optional = {"teacher", "teacher_index", "old_logprobs", "segment_ids"}
    fields: dict[str, Any] = {}
    for name in (f.name for f in dataclasses.fields(cls)):
        path = prefix + name
        if name in PARTS and any(key.startswith(f"{path}.") for key in found):
            fields[name] = PARTS[name](**_part(PARTS[name], found, f"{path}."))
        else:
            fields[name] = found.get(path) if name in optional else found[path]
    return fields


def run(cfg: config.Train) -> None:
    """Makes the update again and prints its loss, its gradient's norm and what is not finite."""
    assert cfg.replay is not None
    file = storage.place(cfg.replay, "replay")
    batch = load(file)
    saved = Checkpoints(file.parent, cfg.checkpoint)
    number = int(file.stem) if file.stem.isdigit() else -1
    if number not in saved.steps():
        raise UserError(
            f"replay is {cfg.replay!r}: the checkpoint {file.parent / file.stem} is gone"
        )
    saved.check(number)
    shop = loaded_model.workshop(cfg.model, cfg.mesh, lora=cfg.lora)
    tx = adamw.make(cfg.optim)
    shardings = states.shardings(shop.abstract, tx, cfg.teacher, shop.mesh)
    init = states.initialiser(tx, cfg.teacher, shardings)
    train_step = update.make_train_step(
        shop.graphdef, Objective.of(cfg), cfg.optim, shardings, cfg.model.remat
    )
    with jax.set_mesh(shop.mesh):
        like = jax.eval_shape(init, shop.abstract)
        state, host = saved.restore(number, abstract(like, shardings))
        state = adapters.with_base(state, shop, host)
        placed = hosts.place(batch, update.batch_shardings(batch, shop.mesh))
        found = next(_not_finite(batch, placed, state, shop, shardings, cfg), "nothing")
        _, metrics, _ = train_step(state, placed)
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    hosts.note(
        f"step {number}  loss {numbers['loss/total']:.6g}  gradient norm "
        f"{numbers['optim/grad_norm']:.6g}\nnot finite, first: {found}"
    )


def _not_finite(
    batch: Batch,
    placed: Batch,
    state: TrainState,
    shop: LoadedModel,
    shardings: TrainState,
    cfg: config.Train,
) -> Iterator[str]:
    """Yields what is not finite, in the order in which an update makes or reads it."""
    for name, array in _arrays(batch):
        if array.dtype == np.float32 and not np.isfinite(array).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            yield f"the batch's {name} at {list(at)}"
    for whose, params in (("student", state.params), ("teacher", state.teacher_params)):
        for name in _bad_leaves(params):
            yield f"the {whose}'s parameter {name}"

    def gradient(state: TrainState, micro: Batch) -> tuple[nnx.State, Any]:
        teacher_params = update.teacher_on_device(state, shardings)
        near = dataclasses.replace(state, teacher_params=teacher_params)
        loss = partial(microbatch_loss, shop.graphdef, Objective.of(cfg))
        return jax.grad(loss, has_aux=True)(state.params, NO_SUMS, near, micro)

    on_all = rules.replicated(shop.mesh)
    gradient_of = jax.jit(gradient, out_shardings=(shardings.params, on_all))
    for micro in range(int(batch.microbatches)):
        rows = jax.tree.map(lambda x, i=micro: x[i], placed.rows)
        grads, (sums, record) = gradient_of(state, dataclasses.replace(placed, rows=rows))
        real = batch.rows.sample[micro] >= 0
        for whose in ("student", "teacher") if batch.rows.teacher is not None else ("student",):
            values = np.asarray(getattr(record, f"{whose}_logprob"))
            if (wrong := real & ~np.isfinite(values)).any():
                row, token = (int(i) for i in np.argwhere(wrong)[0])
                which = int(batch.rows.sample[micro, row, token])
                index = int(batch.rows.index[micro, row, token])
                yield f"the {whose}'s log-probability of token {index} of completion {which}"
        for name, value in (sums.total | sums.largest).items():
            if not np.isfinite(float(value)):
                yield f"the metric {name} of microbatch {micro}"
        for name in _bad_leaves(grads):
            yield f"the gradient by {name} in microbatch {micro}"


def _bad_leaves(params: nnx.State | None) -> list[str]:
    """Returns the names of the parameters that hold something that is not finite."""
    if params is None:
        return []
    bad = jax.jit(lambda p: jax.tree.map(lambda x: ~jnp.isfinite(x).all(), p))(params)
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(bad))
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, is_it in named if is_it
    ]
