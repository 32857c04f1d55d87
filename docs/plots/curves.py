"""Plots held-out accuracy against step, by method, from the metrics.jsonl of runs.

    python docs/plots/curves.py OUT.png RUN [RUN ...]      # needs matplotlib

Runs are named METHOD_TASK.SEED or METHOD_TASK; a thin line is a seed, a thick one their mean.
Prints the table of docs/results.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

SHOWN = (0, 10, 20, 30, 50, 70, 100)


def points(run: Path) -> list[tuple[int, float, float]]:
    """Returns (step, avg@8, mean completion tokens) of each evaluation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [(r["step"], r["eval/avg@8"], r["eval/length"]) for r in rows if "eval/avg@8" in r]


def main(out: str, *runs: str) -> None:
    """Writes the plot and prints the table."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for run in map(Path, runs):
        method, task = re.fullmatch(r"(sdpo|grpo)_(\w+?)(\.\d+)?", run.name).group(1, 2)
        found[task][method].append(points(run))
    figure, axes = pyplot.subplots(1, len(found), figsize=(5.5 * len(found), 3.8), sharey=True)
    print("| task | method | seeds |", " | ".join(map(str, SHOWN)), "| tokens, 0 -> 100 |")
    print("|" + " --- |" * (4 + len(SHOWN)))
    for axis, (task, methods) in zip(axes, sorted(found.items()), strict=True):
        for method, colour in (("sdpo", "tab:blue"), ("grpo", "tab:orange")):
            seeds = methods[method]
            steps = [p[0] for p in seeds[0]]
            mean = [sum(s[i][1] for s in seeds) / len(seeds) for i in range(len(steps))]
            for seed in seeds:
                axis.plot(steps, [p[1] for p in seed], color=colour, alpha=0.35, linewidth=1)
            axis.plot(steps, mean, color=colour, linewidth=2.5, label=method.upper())
            spread = [[s[steps.index(at)][1] for s in seeds] for at in SHOWN]
            cells = [f"{sum(x) / len(x):.3f} ({min(x):.3f}-{max(x):.3f})" for x in spread]
            lengths = [sum(s[i][2] for s in seeds) / len(seeds) for i in (0, -1)]
            ends = f"{lengths[0]:.1f} -> {lengths[1]:.1f}"
            print(f"| {task} | {method.upper()} | {len(seeds)} |", " | ".join(cells), f"| {ends} |")
        axis.set(title=task, xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("held-out avg@8")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
