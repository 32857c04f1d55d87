"""The text model inside a checkpoint that also sees images: its config and its tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sdjax.models.families.registry import FAMILIES
from sdjax.models.files.fields import Fields, refuse, table, without_null
from sdjax.models.files.shards import StoredTensors

OF_WHOLE = {
    *("model_type", "architectures", "text_config", "vision_config", "mm_tokens_per_image"),
    *("boi_token_index", "eoi_token_index", "image_token_index"),
    *("boi_token_id", "eoi_token_id", "image_token_id"),
}
"""Fields that say nothing about the text model."""

# What the names of the text model's tensors begin with, and what they begin with in a checkpoint
# without images: as published, and as transformers 5 names the modules.
PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
IN_WHOLE = "model.language_model."
"""What stands for "model." in the names of the modules of the whole model in transformers."""


def family_of(fields: Fields) -> str | None:
    """Returns the family of the text model of a config with a vision tower, else None."""
    whole = fields.get("model_type")
    return next((name for name, one in FAMILIES.items() if whole and one.part_of == whole), None)


def fields_of(fields: Fields) -> dict[str, Any]:
    """Returns the config.json of the text model alone; another config as it is.

    A field of the whole model wins over that of its text_config, as in transformers.
    """
    name = family_of(fields)
    if name is None:
        return dict(fields)
    text = without_null(table(fields, "text_config"))
    if text.get("model_type", name) != name:
        refuse("text_config.model_type", text["model_type"], f"only {name!r} is supported")
    whole = {k: v for k, v in fields.items() if k not in OF_WHOLE and v is not None}
    return {**FAMILIES[name].part_defaults, **text, **whole, "model_type": name}


def tensors_of(source: StoredTensors) -> StoredTensors:
    """Returns the tensors of the text model alone, under the names of a model without images."""
    names = {}
    for stored in source.files:
        for prefix, ours in PREFIXES.items():
            if stored.startswith(prefix):
                names[ours + stored.removeprefix(prefix)] = stored
                break
    return replace(
        source,
        files={name: source.files[stored] for name, stored in names.items()},
        shapes={name: source.shapes[stored] for name, stored in names.items()},
        kinds={name: source.kinds[stored] for name, stored in names.items()},
        stored=names,
        left_out=tuple(sorted(set(source.files) - set(names.values()))),
    )
