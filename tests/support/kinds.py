"""Small trainings of six kinds, each of 6 steps with evaluations, checkpoints and an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import runs

from sdjax import config

ROWS = 24


def _train(model: Path, *, best: bool = False, **changes: Any) -> config.Train:
    """Returns a training; with `best`, it also keeps the checkpoint of the best evaluation."""
    checkpoint: dict[str, Any] = {"every": 3, "keep": 2, "export": True}
    if best:
        checkpoint |= {"every": 2, "keep": 1, "keep_best": 1, "best_metric": "eval/avg@2"}
    out, log = Path("unset"), {"to": ("tensorboard",)}
    return runs.job(model, out, checkpoint=checkpoint, log=log, **changes)


def _finetuning(model: Path) -> config.SFT:
    """Lines, evaluations and checkpoints come at different steps, so a signal may cut a mean."""
    source = model.with_name("rows.jsonl")
    turns = [
        [
            {"role": "user", "content": f"Say {i}."},
            {"role": "assistant", "content": "so " * (i % 4) + str(i)},
        ]
        for i in range(ROWS)
    ]
    if not source.exists():
        source.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    like = runs.job(model, Path("unset"))
    return config.SFT(
        out="unset",
        source=str(source),
        steps=6,
        batch=4,
        log_every=4,
        max_tokens=96,
        max_prompt_tokens=96,
        task=like.task,
        model=like.model,
        optim=config.Optim(lr=1e-2, warmup_steps=0, microbatch=2, row_tokens=128),
        eval=like.eval,
        checkpoint=config.Checkpoint(every=3, keep=2),
        log=config.Log(progress=False),
    )


KINDS = {
    "ema": lambda m: _train(m, teacher={"kind": "ema", "ema_rate": 0.3}),
    "grpo": lambda m: _train(m, best=True, loss={"distillation": 0.0}, optim={"minibatches": 2}),
    "lora": lambda m: _train(m, lora={"rank": 2}, teacher={"kind": "initial"}),
    "packed": lambda m: _train(m, best=True, optim={"row_tokens": 256}),
    "trust region": lambda m: _train(
        m, teacher={"kind": "trust_region", "mix": 0.2}, optim={"minibatches": 2}
    ),
    "finetuning": _finetuning,
}
