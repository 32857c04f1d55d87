"""What a run that trains adapters keeps: them, and which model they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx

from sdjax import config
from sdjax.errors import UserError
from sdjax.learner.state import TrainState
from sdjax.models.files import peft
from sdjax.models.network import lora
from sdjax.parallel import hosts
from sdjax.training import loaded_model


def base_of(state: TrainState, model: config.Model) -> dict[str, Any]:
    """Returns what a checkpoint says of the frozen model, for `with_base`; {} where none is."""
    if state.frozen is None:
        return {}
    return {"base": {"path": model.path, "checksum": lora.checksum(state.frozen)}}


def with_base(
    state: TrainState, shop: loaded_model.LoadedModel, host: dict[str, Any]
) -> TrainState:
    """Returns a restored state with the frozen model that it belongs to, loaded anew."""
    if shop.cfg.lora is None:
        return state
    return replace(state, frozen=load_base(shop, host))


def load_base(shop: loaded_model.LoadedModel, host: dict[str, Any]) -> nnx.State:
    """Returns the frozen model; raises UserError where it is not the one of the checkpoint."""
    _, frozen = lora.split(shop.load())
    assert frozen is not None
    made_on = host["base"]
    if lora.checksum(frozen) != made_on["checksum"]:
        raise UserError(
            f"model.path: the weights in {shop.folder} are not those that the checkpoint's "
            f"adapters were trained on (then at {made_on['path']}); give those"
        )
    return frozen


def export(
    params: nnx.State, shop: loaded_model.LoadedModel, model: config.Model, out: Path
) -> None:
    """Writes the adapters alone, if there are any, as a folder for PEFT."""
    if shop.cfg.lora is not None:
        peft.export(params, shop.cfg, model.path, out)
        hosts.note(f"adapters: {out} (for PEFT)")
