"""GRPO, the baseline: DeepSeek-R1-Distill-Qwen-7B, on DAPO-Math.

    python -m sdjax.main --config configs/math/grpo_deepseek_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/grpo_deepseek_7b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: AIME24 54.7 to 56.0, AMC23 89.3 to 91.1 (arXiv:2603.24472, first runs).
"""

from dataclasses import replace

from grpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/grpo_deepseek_7b",
    model=replace(base.model, path="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    rollout=replace(base.rollout, enable_thinking=None),
)
