"""GRPO, the baseline: Qwen3-8B without thinking, on DAPO-Math.

    python -m sdjax.main --config configs/math/grpo_qwen3_8b_think_off.py
    python -m sdjax.main --config configs/evaluate/math_no_thinking.py \
        --model.path runs/math/grpo_qwen3_8b_think_off/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: training score .25 to over .75, AMC23 up by about 36 points (arXiv:2603.24472, its runs
without thinking).
"""

from dataclasses import replace

from grpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/grpo_qwen3_8b_think_off",
    rollout=replace(base.rollout, enable_thinking=False),
)
