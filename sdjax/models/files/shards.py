"""Reads safetensors folders slice by slice, and writes them tensor by tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sdjax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
READABLE = ("F32", "F16", "BF16")
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float16": np.float16}
NAMES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}


@dataclass(frozen=True, kw_only=True)
class StoredTensors:
    """A folder's tensors: the file and the shape of each."""

    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    """The dtype of each, as the format names it: F32, F16 or BF16."""
    unread: tuple[Path, ...] = ()
    """Other .safetensors files of the folder, which transformers does not read either."""
    stored: dict[str, str] = field(default_factory=dict)
    """The name in the file of each tensor that has another name here."""
    left_out: tuple[str, ...] = ()
    """Tensors of the files that are no part of the model, such as those of a vision tower."""

    def read(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        """Returns a part of a tensor in its own dtype."""
        # Open the file each time, because an open file keeps all pages that were read in memory.
        with safe_open(self.files[name], framework="np") as file:
            part = file.get_slice(self.stored.get(name, name))
            return part[rows] if columns is None else part[rows, columns]


def open_folder(folder: Path) -> StoredTensors:
    """Returns the tensors of a model folder. Raises UserError if they cannot be read.

    It reads the files of the index, the single file, the numbered files, or else every .safetensors
    file. A second model in the folder, such as a new single file beside an old index, is refused.
    """
    weight_map, paths = _parts(folder)
    if not paths:
        raise UserError(f"{folder}: no .safetensors file: convert the weights to safetensors")
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str] = {}
    for path in paths:
        for name, dtype, shape in _entries(path):
            if weight_map.get(name, path.name) != path.name:
                continue
            if name in files:
                raise UserError(
                    f"{folder}: {files[name].name} and {path.name} both hold {name}: remove one"
                )
            if dtype not in READABLE:
                raise UserError(
                    f"{path}: tensor {name} is {dtype}: only {', '.join(READABLE)} can be read"
                )
            files[name], shapes[name], kinds[name] = path, shape, dtype
    unread = sorted(set(folder.glob("*.safetensors")) - set(paths))
    second = [path for path in unread if path.name == SINGLE or SHARD.fullmatch(path.name)]
    if second:
        first = f"that of {INDEX}" if weight_map else paths[0].name
        raise UserError(f"{folder}: holds two models, {first} and {second[0].name}: remove one")
    return StoredTensors(files=files, shapes=shapes, kinds=kinds, unread=tuple(unread))


def _parts(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """Returns the file of each tensor that the index names, {} without an index, and all files."""
    if not (folder / INDEX).exists():
        single = folder / SINGLE
        every = sorted(folder.glob("*.safetensors"))
        parts = [path for path in every if SHARD.fullmatch(path.name)]
        return {}, [single] if single.exists() else parts or every
    try:
        weight_map = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        strange = [name for name in weight_map.values() if Path(name).name != name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX}: not an index of tensors ({error!r})") from None
    if strange:
        raise UserError(f"{folder / INDEX}: names {strange[0]!r}, outside the folder: remove it")
    return weight_map, sorted({folder / name for name in weight_map.values()})


def _entries(path: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():
                part = file.get_slice(name)
                yield name, part.get_dtype(), tuple(part.get_shape())
    except FileNotFoundError:
        raise UserError(f"{path}: missing, though {INDEX} names it: download it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}): download it again"
        ) from None


def plan(shapes: dict[str, tuple[int, ...]], dtype: str, max_bytes: int) -> list[list[str]]:
    """Returns the names of the tensors of each file, in order.

    A file has at most `max_bytes`, unless a single tensor is larger.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if shards[-1] and size + nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def write(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    tensors: Iterable[np.ndarray],
    max_bytes: int,
) -> None:
    """Writes tensors as one file or as several.

    The safetensors library needs all tensors of a file at once. The format (8 bytes for the
    length of the header, a JSON header, the data) lets us write each tensor as it comes.

    Args:
        folder: Where to write.
        shapes: The shape of every tensor by name.
        dtype: bfloat16, float16 or float32.
        tensors: The tensors, in the order of `shapes`. They are taken one by one.
        max_bytes: The largest size of a file.
    """
    shards = plan(shapes, dtype, max_bytes)
    source = iter(tensors)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        with open(folder / name, "wb") as file:
            file.write(_header({n: shapes[n] for n in names}, dtype))
            for _, array in zip(names, islice(source, len(names)), strict=True):
                file.write(np.ascontiguousarray(array, DTYPES[dtype]).tobytes())
        weight_map |= dict.fromkeys(names, name)
    if len(shards) > 1:
        itemsize = np.dtype(DTYPES[dtype]).itemsize
        total = sum(math.prod(shape) for shape in shapes.values()) * itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _header(shapes: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
