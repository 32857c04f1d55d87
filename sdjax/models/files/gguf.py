"""Reads GGUF files (llama.cpp): the model's config, weights and tokenizer.

It presents the file like a Hugging Face folder: fields of config.json, and dequantised tensors
with Hugging Face's names and order of rows.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import UserError, require_package
from sdjax.models.files import gguf_header

ARCHITECTURES = ("llama", "qwen2", "qwen3")

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# llama.cpp rotates neighbouring rows as a pair; Hugging Face rotates rows half a head apart. So
# llama.cpp's converter reorders the rows of these tensors, for the llama architecture only.
PERMUTED = re.compile(r"self_attn\.[qk]_proj\.(weight|bias)$")


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """An open GGUF file."""

    path: Path
    header: gguf_header.Header

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a metadata value."""
        return self.header.fields.get(key, default)

    @cached_property
    def architecture(self) -> str:
        """The model family."""
        name = self.get("general.architecture")
        if name not in ARCHITECTURES:
            raise UserError(
                f"{self.path}: architecture is {name!r}: supported in GGUF are "
                f"{', '.join(ARCHITECTURES)}; use the model's Hugging Face folder"
            )
        return name

    @cached_property
    def tensors(self) -> dict[str, gguf_header.TensorInfo]:
        """The tensors by their Hugging Face names."""
        return {_hf_name(name): info for name, info in self.header.tensors.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes."""
        return {name: info.shape for name, info in self.tensors.items()}

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The tensors' types, such as F32, BF16 or Q8_0."""
        from gguf import GGMLQuantizationType

        return {name: GGMLQuantizationType(info.kind).name for name, info in self.tensors.items()}

    def read(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        """Returns a part of a tensor as float32. Rows of q and k must be whole heads."""
        data = self._dequantise(self.tensors[name], rows)
        if self.architecture == "llama" and PERMUTED.search(name):
            pairs = data.reshape(-1, self.head_dim // 2, 2, *data.shape[1:])
            data = pairs.swapaxes(1, 2).reshape(data.shape)
        return data if columns is None else data[:, columns]

    def _dequantise(self, tensor: gguf_header.TensorInfo, rows: slice) -> np.ndarray:
        """Returns rows of a tensor as float32. A block of the file spans the last dimension."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        kind = GGMLQuantizationType(tensor.kind)
        block, size = GGML_QUANT_SIZES[kind]
        *outer, last = tensor.shape
        shape = (*outer, last // block * size)
        offset = self.header.data + tensor.offset
        try:
            stored = np.memmap(self.path, np.uint8, mode="r", offset=offset, shape=shape)
        except ValueError:
            raise UserError(f"{self.path}: the file is cut short: download it again") from None
        try:
            data = quants.dequantize(stored[rows] if outer else stored, kind)
        except NotImplementedError:
            raise UserError(f"{self.path}: {kind.name} tensors cannot be dequantised") from None
        return np.asarray(data if outer else data[rows], np.float32)

    @property
    def head_dim(self) -> int:
        """The number of dimensions of a head."""
        arch = self.architecture
        heads = self.get(f"{arch}.attention.head_count")
        return self.get(f"{arch}.attention.key_length", self.shape("embedding_length") // heads)

    def shape(self, key: str) -> int:
        """Returns a size that every GGUF model must have; raises UserError if it is missing."""
        value = self.get(f"{self.architecture}.{key}")
        if value is None:
            raise UserError(f"{self.path}: {self.architecture}.{key} is missing")
        return value

    def config(self) -> dict[str, Any]:
        """Returns the model as the fields of a config.json."""
        arch = self.architecture
        if "rope_freqs.weight" in self.tensors:
            raise UserError(
                f"{self.path}: rope_freqs.weight: scaled rotary frequencies are not read from "
                "GGUF; use the model's Hugging Face folder"
            )
        rotated = self.get(f"{arch}.rope.dimension_count", self.head_dim)
        if rotated != self.head_dim:
            raise UserError(
                f"{self.path}: {arch}.rope.dimension_count is {rotated}: "
                f"only the whole head ({self.head_dim}) is supported"
            )
        heads = self.shape("attention.head_count")
        tokens = {
            f"{name}_token_id": self.get(f"tokenizer.ggml.{key}_token_id")
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        }
        return {
            "model_type": arch,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "hidden_size": self.shape("embedding_length"),
            "intermediate_size": self.shape("feed_forward_length"),
            "num_hidden_layers": self.shape("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get(f"{arch}.attention.head_count_kv", heads),
            "head_dim": self.head_dim,
            "max_position_embeddings": self.shape("context_length"),
            "rms_norm_eps": _shortest(self.shape("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "rope_parameters": self._rope(),
            **tokens,
        }

    def _rope(self) -> dict[str, Any]:
        arch = self.architecture
        out = {
            "rope_theta": self.get(f"{arch}.rope.freq_base", 10_000.0),
            "rope_type": self.get(f"{arch}.rope.scaling.type", "none").replace("none", "default"),
        }
        if out["rope_type"] != "default":
            out["factor"] = self.get(f"{arch}.rope.scaling.factor")
        if out["rope_type"] == "yarn":
            original = self.get(f"{arch}.rope.scaling.original_context_length")
            out["original_max_position_embeddings"] = original
        return out


def open_file(path: Path) -> GgufFile:
    """Returns an open GGUF file. Tensors stay on disk until they are read."""
    require_package("gguf", "gguf", str(path))
    try:
        return GgufFile(path=path, header=gguf_header.read(path))
    except (ValueError, OSError, KeyError, OverflowError, MemoryError, struct.error) as error:
        raise UserError(f"{path}: not a readable GGUF file ({error}): download it again") from None


def _hf_name(name: str) -> str:
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in LAYER:
        return f"model.layers.{match[1]}.{LAYER[match[2]]}.{match[3]}"
    return TOP.get(name, name)


def _shortest(x: float) -> float:
    """Returns the float that prints like the float32 `x`: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(x)))
