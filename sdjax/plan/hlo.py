"""Reads from the text of a compiled program how many bytes it moves between chips.

The body of a loop counts as often as the compiler says that it runs (known_trip_count), or as the
caller says where the text has no count. Format of the text:
https://openxla.org/xla/operation_semantics
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2,
    "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip
ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OP = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?([^}\s]+)\}?")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One operation that moves bytes between chips."""

    kind: str
    piece: str
    """Name of the operation that this is one piece of, if the compiler overlaps its pieces with
    other work; empty for a whole operation."""
    shape: str
    """Shape of the result."""
    overlapped: bool
    """Whether the program starts it, computes, and then waits for its end."""
    group: int
    """Number of chips that take part."""
    times: float
    """How often one call of the program runs the operation."""
    bytes: float
    """Bytes that one chip receives over links in each run. Gathering or scattering an array of B
    bytes over g chips takes B (g - 1) / g. Reducing it for all chips takes twice that."""


def collectives(text: str, chips: int, unknown: float = 1.0) -> list[Collective]:
    """Returns the collectives in the text of an optimised program.

    A loop counts as `unknown` runs if the text does not hold its trip count. Raises ValueError if
    the text has no ENTRY computation.
    """
    bodies = _computations(text)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    if entry is None:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    found = _within(bodies, entry[1], 1.0, chips, unknown)
    # The text writes every piece with the shape of the whole operation, so each counts once. Only
    # the first piece says that the operation is one that starts and is waited for later.
    whole: dict[str, Collective] = {}
    for i, one in enumerate(found):
        name = one.piece or str(i)
        started = one.overlapped or (name in whole and whole[name].overlapped)
        whole[name] = replace(one, overlapped=started)
    return list(whole.values())


def overlap(found: list[Collective]) -> float:
    """Returns the share of the bytes that move while the chip computes; 1 if none move."""
    total = sum(one.times * one.bytes for one in found)
    moved = sum(one.times * one.bytes for one in found if one.overlapped)
    return moved / total if total else 1.0


def by_kind(found: list[Collective]) -> dict[str, float]:
    """Returns the bytes that one chip receives in one call of the program, by kind of
    collective."""
    total = dict.fromkeys(KINDS, 0.0)
    for one in found:
        total[one.kind] += one.times * one.bytes
    return {kind: size for kind, size in total.items() if size}


def _computations(text: str) -> dict[str, list[str]]:
    """Returns the lines of every computation, by its name."""
    out: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith(" ") and (head := _HEAD.match(line)):
            lines = out.setdefault(head[1], [])
        elif line.startswith(" "):
            lines.append(line)
    return out


def _within(
    bodies: dict[str, list[str]],
    name: str,
    times: float,
    chips: int,
    unknown: float,
    fused: bool = False,
) -> Iterator[Collective]:
    """Yields the collectives of a computation and of those that it calls.

    Args:
      bodies: lines of every computation.
      name: the computation.
      times: how often one call of the program runs it.
      chips: number of chips of the program.
      unknown: runs of a loop whose trip count the text does not hold.
      fused: whether the computation is part of a fusion.
    """
    for line in bodies.get(name, ()):
        op = _OP.match(line)
        if op is None:
            continue
        own, shape, called, rest = op.groups()
        kind = called.removesuffix("-start")
        if kind in KINDS:
            is_async = called != kind
            if fused and kind == "all-reduce" and (parts := _parts_kept(bodies[name], own, shape)):
                kind, shape = "reduce-scatter", parts
            channel = re.search(r"channel_id=(\d+)", rest)
            piece = f"{kind} {channel[1]}" if fused and channel else ""
            one = _collective(kind, piece, shape, rest, is_async, times, chips)
            # A TPU's program starts a gather in a fusion that ends in this call.
            starts = any(ASYNC_START in other for other in bodies[name]) if fused else False
            yield replace(one, overlapped=is_async or starts)
        inner = times
        if called == "while":
            trips = _trips(bodies, rest)
            inner = times * (unknown if trips is None else trips)
        if called in ("while", "conditional", "call", "fusion", "async-start"):
            for group in _CALLED.findall(rest):
                for one in group.split(","):
                    within = fused or called == "fusion"
                    inside = one.strip().lstrip("%")
                    yield from _within(bodies, inside, inner, chips, unknown, within)


def _parts_kept(lines: list[str], summed: str, shape: str) -> str:
    """Returns the shapes of the slices that a fusion keeps of the result of its all-reduce
    `summed`.

    Returns "" if it keeps any result whole. The TPU compiler writes a reduce-scatter in this way,
    as a fusion of an all-reduce and one slice of each result. Its backend_config then names an
    emitter of reduce-scatters, (SingleInput)AllReduceScatterFusion.
    """
    sums, parts = {summed}, []
    for op in filter(None, map(_OP.match, lines)):
        own, given, called, rest = op.groups()
        operand = re.split(r"[,)]", rest, maxsplit=1)[0].lstrip("%")
        if operand in sums and called == "get-tuple-element":
            sums.add(own)
        if operand in sums and called == "dynamic-slice":
            parts.append(given)
    return ", ".join(parts) if len(parts) == len(_SHAPE.findall(shape)) else ""


def _trips(bodies: dict[str, list[str]], loop: str) -> int | None:
    """Returns how often a loop runs: its known_trip_count, or the bound of its counter.

    JAX's loops count from 0 by 1. Returns None if the bound is computed.
    """
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = bodies.get(condition[1], []) if condition else []
    constants = {}
    for line in lines:
        if found := re.search(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", line):
            constants[found[1]] = int(found[2])
    for line in lines:
        bound = re.search(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", line)
        if bound and bound[1] in constants:
            return constants[bound[1]]
    return None


def _collective(
    kind: str, piece: str, shape: str, rest: str, is_async: bool, times: float, chips: int
) -> Collective:
    """Returns one collective.

    Args:
      kind: one of KINDS.
      piece: as in Collective.
      shape: shape of the result; of an asynchronous operation also of its operands.
      rest: text after the operation's name.
      is_async: whether the line only starts the operation.
      times: how often one call of the program runs it.
      chips: number of chips of the program.
    """
    sizes = [_size(*found) for found in _SHAPE.findall(shape)]
    given = sizes
    if is_async and kind == "collective-permute":  # the tuple is (operand, result, 2 numbers)
        given = sizes[1:2]
    elif is_async and len(sizes) > 1:  # the tuple holds operands, then as many results
        given = sizes[len(sizes) // 2 :]
    group = _group(rest, chips)
    whole = sum(given) * (group if kind == "reduce-scatter" else 1)
    share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}
    moved = whole * share.get(kind, (group - 1) / group)
    return Collective(
        kind=kind,
        piece=piece,
        shape=shape,
        overlapped=is_async,
        group=group,
        times=times,
        bytes=moved,
    )


def _size(dtype: str, dims: str) -> int:
    return _BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)


def _group(rest: str, chips: int) -> int:
    """Returns how many chips take part, or all of them if the operation names no groups.

    Groups are written as replica_groups={{0,1},{2,3}}, as [32,2]<=[64], or as axes of a mesh:
    mesh['a'=8,'b'=2] {'a'}. The devices of the mesh may stand between the two.
    """
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    return chips
