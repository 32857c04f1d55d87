"""Writes adapters as a folder that the PEFT library loads onto the base model."""

from __future__ import annotations

import json
import re
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save

from sdjax.errors import UserError
from sdjax.io.files import replacing_folder
from sdjax.models.files import shards, tensors, text_part
from sdjax.models.files.hf_export import copy_tokenizer, gather
from sdjax.models.network import lora
from sdjax.models.network.model_config import ModelConfig


def export(
    params: nnx.State,
    cfg: ModelConfig,
    base: str,
    source: Path,
    out: Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and the tokenizer to the folder `out`.

    The folder appears complete or not at all; it replaces an earlier one. Adapters of matrices that
    a checkpoint fuses become one adapter of the sum of their ranks, with the same product. Every
    process must call this function. Raises WriteError if the folder cannot be written.

    Args:
        params: The params of a Transformer with adapters.
        cfg: The model.
        base: The model that the adapters extend, as PEFT finds it: a hub id or a folder.
        source: The folder that has its tokenizer, or a GGUF file.
        out: The folder to write.
        revision: Of a hub id.
        dtype: bfloat16, float16 or float32.
    """
    assert cfg.lora is not None
    pairs, rank = lora.pairs(params[lora.NAME]), cfg.lora.rank
    wanted = tensors.of(cfg)
    rows = {name: shape[0] for name, shape in tensors.stored_shapes(wanted).items()}
    adapted = [t for t in wanted if t.layer is not None and t.path[-1] in pairs]
    arrays, ranks = {}, {}
    inside = _sees_images(source)
    for tensor, group in groupby(adapted, key=attrgetter("name")):
        name = tensor.removesuffix(".weight")
        parts = []
        for one in group:
            a, b = (gather(x[one.place]) for x in pairs[one.path[-1]])
            parts.append((one.rows, a, b))
        ranks[name.rpartition(".")[2]] = rank * len(parts)
        name = text_part.IN_WHOLE + name.removeprefix("model.") if inside else name
        stored = _joined(parts, rank, rows[tensor])
        for part, array in stored.items():
            with np.errstate(over="ignore"):  # looked for below
                stored_as = np.ascontiguousarray(array, shards.DTYPES[dtype])
            if not np.isfinite(stored_as.astype(np.float32)).all():
                raise UserError(
                    f"export to {out}: {name} holds NaN or infinity as {dtype}: take an earlier "
                    "checkpoint, or a type with a larger range"
                )
            arrays[f"base_model.model.{name}.{part}.weight"] = stored_as
    if jax.process_index() != 0:
        return
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": cfg.lora.rank,
        "lora_alpha": cfg.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": _targets(sorted(ranks), inside),
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {
            module: cfg.lora.alpha * r / rank for module, r in ranks.items() if r != rank
        },
        "bias": "none",
        "inference_mode": True,
    }
    with replacing_folder(out) as folder:
        # Not the library's save_file, whose error on a full disk is no OSError.
        (folder / "adapter_model.safetensors").write_bytes(save(arrays))
        (folder / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n")
        if source.suffix != ".gguf":
            copy_tokenizer(source, folder)


def _joined(
    parts: list[tuple[slice, np.ndarray, np.ndarray]], rank: int, rows: int
) -> dict[str, np.ndarray]:
    """Returns A [ranks, inputs] and B [rows, ranks] of one stored matrix, in PEFT's names.

    `parts` are the rows of the matrix, A [..., rank] and B [rank, ...] of each adapter of it. B has
    each adapter's own rows and ranks, and zeros elsewhere.
    """
    b = np.zeros((rows, rank * len(parts)), parts[0][2].dtype)
    for i, (own, _, of_part) in enumerate(parts):
        b[own, i * rank : (i + 1) * rank] = of_part.reshape(rank, -1).T
    a = np.concatenate([of_part.reshape(-1, rank).T for _, of_part, _ in parts])
    return {"lora_A": a, "lora_B": b}


def _sees_images(source: Path) -> bool:
    """Returns whether PEFT finds the text model inside another, which also sees images."""
    if source.suffix == ".gguf":
        return False
    return text_part.family_of(json.loads((source / "config.json").read_text())) is not None


def _targets(modules: list[str], inside: bool) -> list[str] | str:
    """Returns the adapted modules as PEFT reads them: names, or a pattern of their whole paths.

    A vision tower has modules of the same names.
    """
    whole = re.escape(text_part.IN_WHOLE)
    return rf"{whole}.*\.({'|'.join(modules)})" if inside else modules
