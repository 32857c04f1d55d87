"""Writes params as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from sdjax.errors import UserError
from sdjax.io import progress
from sdjax.io.files import replacing_folder
from sdjax.models.families import registry
from sdjax.models.files import gguf, shards, tensors, text_part
from sdjax.models.network import lora
from sdjax.models.network.model_config import ModelConfig

# The files of a tokenizer, and of a folder without its weights and config.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
COPIED = ("generation_config.json", *TOKENIZER, "LICENSE")
EXPERTS = ("num_experts", "num_local_experts")  # of transformers 4 and vLLM, and transformers 5
TEMPLATES = "additional_chat_templates"


def export(
    params: nnx.State,
    cfg: ModelConfig,
    source: Path,
    out: Path,
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
    between: Callable[[], None] = lambda: None,
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes weights, config.json, generation_config.json and tokenizer to the folder `out`.

    Adapters are added to the weights. Tensors are fetched and written one by one. The folder
    appears complete or not at all; it replaces an earlier export. Every process must call this
    function; the first one writes. Raises UserError if the folder holds anything else, if a
    parameter is not finite as `dtype`, or (WriteError) if the folder cannot be written.

    Args:
        params: The params of a Transformer.
        cfg: The model.
        source: The folder or GGUF file that the model was loaded from. Its config and tokenizer
            are kept.
        out: The folder to write.
        dtype: bfloat16, float16 or float32. A number too large for it raises UserError.
        max_shard_bytes: The largest size of a file of weights.
        between: Called before each tensor. What it raises ends the export without a trace.
        finish: Changes the complete folder before it gets its name.
    """
    if out.exists() and not (out / "config.json").exists() and any(out.iterdir()):
        raise UserError(f"export to {out}: the folder holds something else: name another")
    if bad := tensors.not_finite(params, dtype):
        others = f" and {len(bad) - 1} others" if bad[1:] else ""
        raise UserError(
            f"export to {out}: {bad[0]}{others} hold NaN or infinity as {dtype}: take an earlier "
            "checkpoint, or a type with a larger range"
        )
    wanted = tensors.of(cfg)
    fetched = _fetch(lora.without_adapters(params, cfg), wanted, dtype, between)
    shapes = tensors.stored_shapes(wanted)
    arrays = progress.told(fetched, f"writing {out}", "tensors", len(shapes))
    if jax.process_index() != 0:
        for _ in arrays:
            pass
        return
    with replacing_folder(out) as folder:
        shards.write(folder, shapes, dtype, arrays, max_shard_bytes)
        _write_config(folder, cfg, source, dtype)
        finish(folder)


def _fetch(
    params: nnx.State, wanted: list[tensors.Tensor], dtype: str, between: Callable[[], None]
) -> Iterator[np.ndarray]:
    """Yields every tensor in the layout of a checkpoint, gathered from all devices."""
    leaves = dict(nnx.to_flat_state(params))

    def one(tensor: tensors.Tensor) -> np.ndarray:
        leaf = leaves[tensor.path].get_value()
        x = (leaf[tensor.place] if tensor.place else leaf).astype(jnp.dtype(dtype))
        return tensor.stored(gather(x))

    for _, parts in groupby(wanted, key=attrgetter("name")):
        between()
        arrays = list(map(one, parts))
        yield np.concatenate(arrays) if arrays[1:] else arrays[0]


def gather(x: jax.Array) -> np.ndarray:
    """Returns a whole array on every host."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _write_config(folder: Path, cfg: ModelConfig, source: Path, dtype: str) -> None:
    """Writes all files but the weights."""
    if source.suffix == ".gguf":
        file = gguf.open_file(source)
        tokens = {k: v for k, v in file.config().items() if k.endswith("_token_id")}
        # Not the context of the run, which `cfg` may have.
        longest = {k: v for k, v in file.config().items() if k == "max_position_embeddings"}
        fields = registry.to_hf(cfg) | tokens | longest
        _write_json(folder / "generation_config.json", tokens)
        from sdjax.tokenizer import Tokenizer

        Tokenizer.read(source).save(folder)
    else:
        fields = text_part.fields_of(json.loads((source / "config.json").read_text()))
        copy_tokenizer(source, folder, COPIED)
    ours = registry.to_hf(cfg)
    # vLLM chooses the class of a model by this field alone.
    fields.setdefault("architectures", ours["architectures"])
    # Both spellings of each, so that transformers 4, transformers 5 and vLLM read the same model.
    both = {*EXPERTS, "partial_rotary_factor"}
    spelled = {k: v for k, v in ours.items() if k.startswith("rope_") or k in both}
    fields |= spelled | {"tie_word_embeddings": cfg.tie_embeddings}
    fields |= {"dtype": dtype, "torch_dtype": dtype}
    _write_json(folder / "config.json", fields)


def copy_tokenizer(source: Path, folder: Path, names: Iterable[str] = TOKENIZER) -> None:
    """Copies the files of a tokenizer, in terms that transformers 4 and transformers 5 know."""
    for name in names:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, folder / TEMPLATES)
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text()) if path.exists() else {}
    changed = dict(fields)
    if fields.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 5 writes a list, where transformers 4 expects names. Both read the older field.
    if isinstance(fields.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if changed != fields:
        _write_json(path, changed)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
