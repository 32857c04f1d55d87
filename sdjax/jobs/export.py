"""Writes a training checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import adapters, setup
from sdjax.learner.checkpoint import Checkpoints
from sdjax.models import lora, weights
from sdjax.parallel import rules


def run(cfg: config.Export) -> None:
    """Reads only the parameters of the checkpoint, spread over the devices as in training."""
    run_dir, out = Path(cfg.run), Path(cfg.out)
    if out.exists():
        raise UserError(f"out is {cfg.out!r}: it exists; choose another folder")
    try:
        made_with = json.loads((run_dir / "config.json").read_text())
    except OSError:
        raise UserError(f"run is {cfg.run!r}: no config.json there; give a run directory") from None
    model = {k: v for k, v in made_with["model"].items() if k != "class"}
    given = {k: v for k, v in made_with.get("lora", {}).items() if k != "class"}
    if given:
        given["matrices"] = tuple(given["matrices"])
    source = config.Model(**model)
    shop = setup.workshop(source, cfg.mesh, lora=config.Lora(**given))
    checkpoints = Checkpoints(run_dir / "checkpoints", config.Checkpoint())
    step = checkpoints.newest() if cfg.step is None else cfg.step
    if step is None or step not in checkpoints.steps():
        have = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"step is {cfg.step}: checkpoints of {cfg.run}: {have}")
    trained, frozen = lora.split(shop.abstract)
    shardings = rules.param_shardings(trained, shop.mesh)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trained, shardings
    )
    with jax.set_mesh(shop.mesh):
        params = checkpoints.params(step, like)
        if frozen is not None:
            params = lora.joined(params, adapters.load_base(shop, checkpoints.host(step)))
        weights.export(params, shop.cfg, shop.folder, out)
        adapters.export(params, shop, source, out.with_name(f"{out.name}_adapter"))
    checkpoints.close()
    setup.note(f"step {step} of {cfg.run} is in {out}, a Hugging Face folder")
