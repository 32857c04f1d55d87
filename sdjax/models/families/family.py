"""Family: the parts of a model family. Each other file of this folder fills one in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.models.network import layer
from sdjax.models.network.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """What sdjax must know about a model family. Only the first three fields have no default."""

    from_hf: Callable[..., ModelConfig]
    """(fields of config.json, **runtime) to the ModelConfig. It reads or refuses every field that
    changes what the model computes. `runtime` are compute_dtype, remat, attention and lora."""
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    """The ModelConfig back to fields of config.json."""
    names: Mapping[str, str]
    """The name of each array of a layer in a checkpoint, below "model.layers.N.". A checkpoint has
    one tensor per expert, and "{expert}" in its name is the expert's number. Arrays of one name are
    one tensor there: its rows, in the order of `layer_shapes`."""
    layer_shapes: Callable[[ModelConfig], layer.Shapes] = layer.layer_shapes
    """Shape and logical axes of each array of a layer, by name. A leading axis "experts" stacks the
    tensors of experts, as all layers are stacked."""
    outputs: Mapping[str, int] = field(default_factory=lambda: layer.OUTPUTS)
    """How many trailing dimensions of each matrix of a layer are outputs. A checkpoint stores a
    matrix as [outputs, inputs], and every other array as a vector."""
    part_of: str | None = None
    """The model_type of checkpoints with a vision tower whose text_config has this family."""
    part_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields that such a text_config may leave out, and the config of a text model may not."""
    mlp: layer.Mlp = layer.dense_mlp
    """(inputs [B, S, embed], LayerWeights, ModelConfig) to float32[B, S, embed]."""
