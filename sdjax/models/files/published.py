"""The configs of published models, by hub id, for jobs that need no weights.

shapes/OWNER/NAME.json holds the fields of the hub's config.json that define what the model
computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdjax.errors import UserError
from sdjax.models.families import registry
from sdjax.models.files import weights
from sdjax.models.network.model_config import ModelConfig

FOLDER = Path(__file__).parents[1] / "shapes"


def names() -> list[str]:
    """Returns the hub ids with a file in shapes/."""
    files = sorted(FOLDER.rglob("*.json"))
    return [file.relative_to(FOLDER).with_suffix("").as_posix() for file in files]


def read_config(name: str, **runtime: Any) -> ModelConfig:
    """Returns the model of a hub id without a request to the hub.

    `runtime`: compute_dtype, remat, attention, lora. Raises UserError if its shape is not known.
    """
    if name not in names():
        raise UserError(f"model.path is {name!r}: no shape known; known are {', '.join(names())}")
    return registry.from_hf(json.loads((FOLDER / f"{name}.json").read_text()), **runtime)


def config_of(path: str, revision: str | None, field: str, **runtime: Any) -> ModelConfig:
    """Returns the model that a config names, from its config.json alone.

    `field` is the config's field that names it, for messages. `runtime` is as in `read_config`. A
    hub id with a known shape is not asked for.
    """
    if path in names() and not Path(path).exists():
        return read_config(path, **runtime)
    folder = weights.resolve(path, revision, files=("config.json",), field=field)
    return weights.read_config(folder, **runtime)
