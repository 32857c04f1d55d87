"""Writes a training checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import jax

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import lease, storage
from sdjax.learner.checkpoint import Checkpoints
from sdjax.models.network import lora
from sdjax.parallel import hosts, rules
from sdjax.training import loaded_model, publish, resume


def run(cfg: config.Export) -> None:
    """Reads only the parameters of the checkpoint, sharded over the devices as in training."""
    run_dir, folder = storage.place(cfg.run, "run"), storage.folder(cfg.out)
    if folder.place.exists():
        raise UserError(f"out is {cfg.out!r}: it exists; choose another folder")
    training = _config_of(run_dir)
    target = publish.Destination(name=cfg.push_to, private=cfg.push_private, field="push_to")
    if jax.process_index() == 0:
        target.check()
    fields = {k: v for k, v in training["model"].items() if k != "class"}
    given = {k: v for k, v in training.get("lora", {}).items() if k != "class"}
    if given:
        given["matrices"] = tuple(given["matrices"])
    source = config.Model(**fields)
    model = loaded_model.open_model(source, cfg.mesh, lora=config.Lora(**given))
    checkpoints = Checkpoints(run_dir / "checkpoints", config.Checkpoint())
    step = _step(cfg, checkpoints)
    trained, frozen = lora.split(model.abstract)
    shardings = rules.param_shardings(trained, model.mesh)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trained, shardings
    )
    primary = jax.process_index() == 0 and not folder.remote
    owned = lease.holding(folder.local) if primary else nullcontext()
    with jax.set_mesh(model.mesh), owned:
        params = checkpoints.params(step, like)
        if frozen is not None:
            params = lora.joined(params, resume.load_base(model, checkpoints.host(step)))
        out = folder.local / "model" if folder.remote else folder.local
        dtype = cfg.dtype or training.get("checkpoint", {}).get("export_dtype", "source")
        # The adapters first, so that a folder with a model lacks nothing.
        model.export_adapters(params, source, out.with_name(f"{out.name}_adapter"), dtype)
        model.export(params, out, dtype)
    checkpoints.close()
    try:
        run, adapters = publish.Provenance.of(run_dir, step), model.cfg.lora is not None
        publish.publish(target, run, out, folder.place, adapters=adapters)
    finally:
        _to_place(folder)
    hosts.note(f"step {step} of {cfg.run} is in {cfg.out}, a Hugging Face folder")


def _step(cfg: config.Export, checkpoints: Checkpoints) -> int:
    """Returns the step of the checkpoint to export; raises UserError if there is none."""
    have = checkpoints.steps()
    if not have:
        raise UserError(
            f"run is {cfg.run!r}: it has no checkpoints (checkpoint.every sets how often a run "
            f"writes one); the model of its end, if it wrote one, is {cfg.run}/model"
        )
    if cfg.step is None:
        newest = checkpoints.newest()
        assert newest is not None
        return newest
    if cfg.step not in have:
        listed = ", ".join(map(str, have))
        raise UserError(f"step is {cfg.step}: the checkpoints of {cfg.run} are {listed}; name one")
    checkpoints.check(cfg.step)
    return cfg.step


def _to_place(folder: storage.Folder) -> None:
    """Copies the exported folders to a bucket, if `out` names one."""
    if folder.remote and jax.process_index() == 0:
        for exported in sorted(folder.local.iterdir()):
            name = folder.place.name + exported.name.removeprefix("model")
            storage.copy_tree(exported, folder.place.with_name(name))
    folder.close()


def _config_of(run: Any) -> dict[str, Any]:
    """Returns the config of a training."""
    file = run / "config.json"
    try:
        training = json.loads(file.read_text())
    except OSError:
        raise UserError(
            f"run is {str(run)!r}: no config.json there; give a run directory"
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); give another run directory") from None
    if not isinstance(training, dict) or not isinstance(training.get("model"), dict):
        raise UserError(f"{file}: not of a training; give another run directory")
    return training
