"""Reads the header of a GGUF file: its metadata, and the places of its tensors.

The reader of the gguf package makes an array of every vocabulary entry, which takes seconds. This
one takes a tenth of a second. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

STRING, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """The place of a tensor. `shape` is in numpy's order, the reverse of GGUF's."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The metadata and tensors of a GGUF file. Offsets of tensors count from byte `data`."""

    fields: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: int


def read(path: Path) -> Header:
    """Returns the header of a file. Raises ValueError or struct.error if it is no GGUF file."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = _number(file, "I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, not 2 or 3")
        tensors, fields = _number(file, "Q"), _number(file, "Q")
        metadata = {_string(file): _value(file, _number(file, "I")) for _ in range(fields)}
        infos = dict(_tensor(file) for _ in range(tensors))
        alignment = metadata.get("general.alignment", 32)
        data = -(-file.tell() // alignment) * alignment
    return Header(fields=metadata, tensors=infos, data=data)


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _number(file, SCALARS[kind])
    kind, count = _number(file, "I"), _number(file, "Q")
    if kind in (STRING, ARRAY):
        return [_value(file, kind) for _ in range(count)]
    layout = f"<{count}{SCALARS[kind]}"
    return list(struct.unpack(layout, file.read(struct.calcsize(layout))))


def _tensor(file: BinaryIO) -> tuple[str, TensorInfo]:
    name = _string(file)
    shape = [_number(file, "Q") for _ in range(_number(file, "I"))]
    kind, offset = _number(file, "I"), _number(file, "Q")
    return name, TensorInfo(shape=tuple(reversed(shape)), kind=kind, offset=offset)
