"""GRPO, the baseline: Qwen3-1.7B, thinking, on DAPO-Math.

    python -m sdjax.main --config configs/math/grpo_qwen3_1_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/grpo_qwen3_1_7b/model

Slice: v5p-32 (16 chips, topology v5p:2x2x4), one row per chip.
Expected (arXiv:2603.24472, runs with thinking): AIME24 stays about the same or rises, while SDPO
loses 45.9% of its value. sdjax has no figure for GRPO.
"""

from dataclasses import replace

from grpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/grpo_qwen3_1_7b",
    model=replace(base.model, path="Qwen/Qwen3-1.7B"),
    optim=replace(base.optim, microbatch=16),
)
