"""Prints a table that compares one GPU with meshes of several, measured by configs/bench/meshes.sh.

    python -m sdjax.bench.mesh_compare RUNS

It reads the bench.json of each run and names those that are missing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax.config import UserError

MESHES = ("data", "fsdp", "tensor")
PHASES = ("step", "rollout", "decode", "update")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The bench.json of each run, by name: `one`, `half` or a mesh, some with losses_ before it."""

    by_name: dict[str, dict[str, Any]]

    def row(self, run: str, phase: str, sequences: int | None = None) -> dict[str, Any]:
        """Returns a run's row of a phase, {} if there is none.

        `sequences` selects the row; None selects the row with the most sequences.
        """
        rows = [r for r in self.by_name.get(run, {}).get("rows", ()) if r["phase"] == phase]
        if sequences is not None:
            rows = [r for r in rows if r["sequences"] == sequences]
        return max(rows, key=lambda r: r["sequences"], default={})

    @property
    def sequences(self) -> int | None:
        """The sequences per step of the rows to compare: the most of any run."""
        sizes = (self.row(run, "step").get("sequences", 0) for run in ("one", *MESHES))
        return max(sizes, default=0) or None


def read(folder: Path) -> tuple[Runs, list[str]]:
    """Returns the runs of a folder, and one line per run without a readable bench.json.

    Raises UserError if no run has one.
    """
    by_name, missing = {}, []
    compared = [prefix + name for prefix in ("", "losses_") for name in ("one", *MESHES)]
    for run in ("half", *compared):
        file = folder / run / "bench.json"
        try:
            by_name[run] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            missing.append(f"{file}: {reason}")
    if not by_name:
        raise UserError(f"{folder}: no bench.json of configs/bench/meshes.sh in it")
    return Runs(by_name=by_name), missing


def to_markdown(runs: Runs) -> str:
    """Returns the table: seconds, one GPU's time over a mesh's, memory, difference of losses."""
    ratios = [f"one / {mesh}" for mesh in MESHES]
    lines = [["", "sequences", "one", *MESHES, *ratios], ["---"] * (3 + 2 * len(MESHES))]
    for phase in PHASES:
        lines.append(_line(runs, f"{phase}, s", phase, "", runs.sequences))
    alone = runs.row("losses_one", "update").get("sequences")
    lines.append(_line(runs, "update, s", "update", "losses_", alone))
    memory = [runs.row(run, "step", runs.sequences).get("peak_bytes") for run in ("one", *MESHES)]
    shown = ["-" if v is None else f"{v / 1e9:.1f}" for v in memory]
    lines.append(["peak, GB a GPU", _number(runs.sequences), *shown, *["-"] * len(MESHES)])
    for phase in ("step", "update"):
        lines.append(_weak(runs, phase))
    apart = [difference(runs, mesh) for mesh in MESHES]
    count = [len(_losses(runs, run)) for run in ("one", *MESHES) if _losses(runs, run)]
    name = f"losses of {min(count, default=0)} updates, largest relative difference"
    lines.append([name, _number(alone), "-", *map(_show("{:.1e}"), apart), *["-"] * len(MESHES)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference(runs: Runs, mesh: str) -> float | None:
    """Returns the largest |a - b| / |b| of a mesh's losses a and one GPU's b; None without any."""
    # The lengths may differ, because a run with a profile has one more update.
    pairs = zip(_losses(runs, mesh), _losses(runs, "one"), strict=False)
    apart = [abs(a - b) / max(abs(b), 1e-30) for a, b in pairs]
    # max() passes over NaN.
    return next((d for d in apart if math.isnan(d)), max(apart, default=None))


def _losses(runs: Runs, mesh: str) -> list[float]:
    return runs.row(f"losses_{mesh}", "update").get("losses") or []


def _line(runs: Runs, name: str, phase: str, prefix: str, sequences: int | None) -> list[str]:
    """Returns the line of a phase: seconds per mesh, and one GPU's seconds over them."""
    names = ("one", *MESHES)
    one, *others = (runs.row(prefix + run, phase, sequences).get("seconds") for run in names)
    ratios = [one / s if one and s else None for s in others]
    seconds = map(_show("{:.3f}"), (one, *others))
    return [name, _number(sequences), *seconds, *map(_show("{:.2f}"), ratios)]


def _weak(runs: Runs, phase: str) -> list[str]:
    """Returns the line of weak scaling.

    Its ratio is one GPU's seconds for its share of the sequences over a mesh's seconds for all.
    """
    shares, share_sequences, seconds = [], None, None
    for mesh in MESHES:
        whole = runs.row(mesh, phase, runs.sequences)
        devices = runs.by_name.get(mesh, {}).get("devices", 1)
        part = runs.row("half", phase, whole["sequences"] // devices) if whole else {}
        share_sequences = part.get("sequences", share_sequences)
        seconds = part.get("seconds", seconds)
        shares.append(part["seconds"] / whole["seconds"] if part else None)
    sizes = f"{_number(share_sequences)} / {_number(runs.sequences)}"
    blank, ratios = ["-"] * len(MESHES), map(_show("{:.2f}"), shares)
    return [f"{phase}, s, weak scaling", sizes, _show("{:.3f}")(seconds), *blank, *ratios]


def _show(form: str) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else form.format(value)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def main(args: Sequence[str]) -> int:
    """Prints the table of a folder; returns 2 if there is none, 1 if a run is missing."""
    try:
        if len(args) != 1:
            raise UserError("one argument: the folder that configs/bench/meshes.sh wrote to")
        runs, missing = read(Path(args[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(to_markdown(runs))
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
