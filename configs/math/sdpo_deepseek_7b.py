"""SDPO, the teacher reading a whole correct completion (c = s): DeepSeek-R1-Distill-Qwen-7B.

    python -m sdjax.main --config configs/math/sdpo_deepseek_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_deepseek_7b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: AIME24 54.7 to 40.7 at worst, AMC23 down by about 15% of its value; "wait" 60.8, "maybe"
and "perhaps" 17.1 fewer a completion (arXiv:2603.24472, its first runs).
"""

from dataclasses import replace

from sdpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/sdpo_deepseek_7b",
    model=replace(base.model, path="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    rollout=replace(base.rollout, enable_thinking=None),
)
