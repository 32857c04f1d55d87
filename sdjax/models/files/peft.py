"""Writes adapters as a folder that the PEFT library loads onto the base model."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from sdjax.models.files import tensors
from sdjax.models.files.hf_export import gather
from sdjax.models.network import lora
from sdjax.models.network.model_config import ModelConfig


def export(params: nnx.State, cfg: ModelConfig, base: str, out: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors (float32) to the folder `out`.

    `base` is the model that the adapters extend: a hub id or a folder. Every process must call
    this function.
    """
    assert cfg.lora is not None
    pairs = lora.pairs(params[lora.NAME])
    arrays, modules = {}, set()
    for tensor in tensors.of(cfg):
        if tensor.layer is None or tensor.path[-1] not in pairs:
            continue
        name = tensor.name.removesuffix(".weight")
        modules.add(name.rpartition(".")[2])
        a, b = (gather(x[tensor.place]) for x in pairs[tensor.path[-1]])
        rank = cfg.lora.rank
        stored = {"lora_A": a.reshape(-1, rank).T, "lora_B": b.reshape(rank, -1).T}
        for part, array in stored.items():
            arrays[f"base_model.model.{name}.{part}.weight"] = np.ascontiguousarray(array)
    if jax.process_index() != 0:
        return
    out.mkdir(parents=True, exist_ok=True)
    save_file(arrays, out / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": cfg.lora.rank,
        "lora_alpha": cfg.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "bias": "none",
        "inference_mode": True,
    }
    (out / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n")
