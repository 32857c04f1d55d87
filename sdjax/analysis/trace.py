"""Computes from a profiler trace how the devices spent their time."""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A kernel belongs to the first category whose pattern its name matches. On a TPU a fusion may
# hold a matrix product, but it counts as "matmul" only if its name says so.
CATEGORIES = {
    "collectives": r"nccl|all[-_]?(reduce|gather|to[-_]all)|reduce[-_]?scatter|collective|permute",
    "attention": r"sdpa|flash|fmha|splash|attention",
    "matmul": r"nvjet|gemm|cublas|cutlass|xmma|convolution|\bdot\b|dot_general|_dot",
    "copies": r"memcpy|memset|copy|dynamic[-_](update[-_])?slice|transpose|concatenate",
    "sort": r"sort|top_?k|radix",
    "reductions": r"reduce",
    "elementwise": r"fusion|loop_|input_|wrapped_|broadcast|convert|select|gather|scatter|iota",
}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """All runs of one kernel, or of one operation on a TPU, over all devices."""

    name: str
    category: str
    seconds: float
    launches: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The work of the devices: kernels by decreasing time, and the seconds from first to last
    event."""

    kernels: tuple[Kernel, ...]
    devices: int
    span: float
    busy: float
    """Seconds of the span in which a device ran something; a mean over devices."""
    exposed: float = 0.0
    """Seconds in which a device ran collectives and nothing else; a mean over devices."""

    @property
    def total(self) -> float:
        """Seconds of all kernels."""
        return sum(k.seconds for k in self.kernels)

    def by_category(self) -> dict[str, float]:
        """Returns the seconds per category, in decreasing order."""
        out: dict[str, float] = defaultdict(float)
        for kernel in self.kernels:
            out[kernel.category] += kernel.seconds
        return dict(sorted(out.items(), key=lambda item: -item[1]))


@functools.cache  # because a trace has many events but few names
def category(name: str) -> str:
    """Returns the kind of work of a kernel, by its name."""
    lower = name.lower()
    return next((kind for kind, says in CATEGORIES.items() if re.search(says, lower)), "other")


def read(folder: Path) -> Trace:
    """Returns the newest trace under a directory that the profiler wrote to.

    Raises FileNotFoundError if there is none. A trace of a CPU has no device and so no kernels.
    """
    files = sorted(folder.glob("**/*.trace.json.gz"), key=lambda f: f.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder}: no .trace.json.gz in it")
    with gzip.open(files[-1], "rt", encoding="utf-8") as file:
        return of_events(json.load(file).get("traceEvents", []))


def of_events(events: Sequence[dict]) -> Trace:
    """Returns the trace in a list of profiler events, from the streams of GPUs and the operations
    of TPUs."""
    names = {
        (e["pid"], e.get("tid") if e["name"] == "thread_name" else None): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e.get("name") in ("process_name", "thread_name")
    }
    seconds: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    others: dict[int, list[tuple[float, float]]] = defaultdict(list)  # all but collectives
    for e in events:
        if e.get("ph") != "X" or not _on_device(names, e):
            continue
        length = e.get("dur", 0.0)
        seconds[e["name"]] += length / 1e6
        launches[e["name"]] += 1
        spans[e["pid"]].append((e["ts"], e["ts"] + length))
        if category(e["name"]) != "collectives":
            others[e["pid"]].append(spans[e["pid"]][-1])
    kernels = (
        Kernel(name=n, category=category(n), seconds=s, launches=launches[n])
        for n, s in seconds.items()
    )
    ends = [t for of_device in spans.values() for pair in of_device for t in pair]
    covered = sum(map(_covered, spans.values()))
    scale = 1e6 * max(len(spans), 1)
    return Trace(
        kernels=tuple(sorted(kernels, key=lambda k: -k.seconds)),
        devices=len(spans),
        span=(max(ends) - min(ends)) / 1e6 if ends else 0.0,
        busy=covered / scale,
        exposed=(covered - sum(map(_covered, others.values()))) / scale,
    )


def _on_device(names: dict, event: dict) -> bool:
    process = names.get((event["pid"], None), "")
    thread = names.get((event["pid"], event.get("tid")), "")
    return ("GPU" in process and thread.startswith("Stream")) or (
        "TPU" in process and thread == "XLA Ops"
    )


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


def to_markdown(trace: Trace, listed: int = 15) -> str:
    """Returns two tables: time by category, and the `listed` kernels that take the most time."""
    if not trace.kernels:
        return "no device events: the trace is of a CPU, or nothing ran on a device"
    head = (
        f"{trace.devices} device(s), {1e3 * trace.span:.1f} ms, busy {trace.busy / trace.span:.1%}"
    )
    if "collectives" in trace.by_category():
        together = trace.by_category()["collectives"] / trace.devices
        head += (
            f"; collectives {1e3 * together:.1f} ms per device, "
            f"{1e3 * trace.exposed:.1f} of them while nothing else ran"
        )
    lines = [head, "", "| where the time goes | ms | share |", "| --- | --- | --- |"]
    for kind, seconds in trace.by_category().items():
        lines.append(f"| {kind} | {1e3 * seconds:.2f} | {seconds / trace.total:.1%} |")
    lines += [
        "",
        "| kernel | category | launches | ms | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    for k in trace.kernels[:listed]:
        name = k.name.replace("|", "\\|")[:80]
        lines.append(
            f"| {name} | {k.category} | {k.launches} | {1e3 * k.seconds:.2f} "
            f"| {k.seconds / trace.total:.1%} |"
        )
    return "\n".join(lines)
