"""SDPO whose teacher reads a whole correct completion (c = s): Qwen3-1.7B, thinking.

    python -m sdjax.main --config configs/math/sdpo_qwen3_1_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_qwen3_1_7b/model

Slice: v5p-32 (16 chips, topology v5p:2x2x4), one row per chip.
Expected: AIME24 falls by 45.9% of its value (arXiv:2603.24472, runs with thinking).
"""

from dataclasses import replace

from sdpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/sdpo_qwen3_1_7b",
    model=replace(base.model, path="Qwen/Qwen3-1.7B"),
    optim=replace(base.optim, microbatch=16),
)
