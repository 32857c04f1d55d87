"""Run directories of a remedy league, in the files that a training writes, of any size."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.analysis import scores

SETS = ("times", "large", "divide", "four")
STEPS = 3
COMPLETIONS = 16


def write(folder: Path, *, seed: int, length: float, skill: float) -> Path:
    """Writes a run of three steps, each evaluated, and returns its directory.

    `length` is that of its completions, and `skill` the share of right answers after training.
    Before training all runs gave the same answers.
    """
    (folder / "answers").mkdir(parents=True)
    rng, evaluations, lines = np.random.default_rng(seed), [], []
    for step in range(STEPS + 1):
        drawn = np.random.default_rng(0) if step == 0 else rng
        right = 0.4 + (skill - 0.4) * step / STEPS
        rows = answers(drawn, right, 20 if step == 0 else int(length))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "answers" / f"{step:06d}.jsonl").write_text(text)
        by_set = {
            name: scores.of_rows(list(of))
            for name, of in itertools.groupby(rows, key=lambda row: row["set"])
        }
        evaluations.append(evaluation(step, by_set))
        lines.append(metrics(step, by_set, length + seed, float(rng.uniform(1, 2))))
    config = {
        "class": "Train",
        "out": str(folder),
        "seed": seed,
        "steps": STEPS,
        "model": {"class": "Model", "path": "package:sdjax.tiny"},
        "task": {"class": "Countdown", "name": "times"},
        "out_of_domain": {name: {"class": "Countdown"} for name in SETS[1:]},
        "eval": {"class": "Eval", "examples": 2, "k": 2},
    }
    made = {"device": "cpu", "devices": 1, "jax": "0.0", "sdjax": "0.0"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"starts": [made]}))
    (folder / "evaluations.json").write_text(json.dumps(evaluations))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def answers(rng: np.random.Generator, right: float, tokens: int) -> list[dict[str, Any]]:
    """Returns the lines of an evaluation: two answers to each of two questions of each set."""
    return [
        {
            "set": name,
            "id": f"{name}-{question}",
            "completion": "Hmm, maybe. " * int(rng.integers(0, 4)),
            "tokens": tokens + int(rng.integers(0, 9)),
            "thinking_tokens": tokens - 4,
            "answer_tokens": 4,
            "finish": "length" if rng.random() < 0.2 else "stop",
            "correct": bool(rng.random() < right),
            "details": {"prediction": "x"},
        }
        for name in SETS
        for question in range(2)
        for _ in range(2)
    ]


def evaluation(step: int, by_set: Mapping[str, scores.Scores]) -> dict[str, Any]:
    own, *others = [(name, found.to_dict()) for name, found in by_set.items()]
    return {"step": step, **own[1], "out_of_domain": dict(others)}


def metrics(
    step: int, by_set: Mapping[str, scores.Scores], length: float, seconds: float
) -> dict[str, Any]:
    """Returns a line of metrics.jsonl; step 0 has no rollouts."""
    names: Sequence[str] = ["eval", *(f"ood/{name}" for name in SETS[1:])]
    out: dict[str, Any] = {"step": step, "eval/fork_rate": length / 1000}
    for where, found in zip(names, by_set.values(), strict=True):
        out |= found.metrics(where)
    if step:
        out |= {
            "rollout/length": length,
            "time/rollout_s": seconds,
            "time/update_s": 1.0,
            "rollout/tokens_per_s": COMPLETIONS * length / (seconds + 1.0),
        }
    return out
