"""SDPO whose teacher reads a whole correct completion (c = s): DeepSeek-R1-Distill-Qwen-7B.

    python -m sdjax.main --config configs/math/sdpo_deepseek_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_deepseek_7b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected (arXiv:2603.24472, first runs): AIME24 falls from 54.7 to 40.7 at worst, AMC23 by about 15%
of its value. A completion has 60.8 fewer "wait", and 17.1 fewer "maybe" and "perhaps".
"""

from dataclasses import replace

from sdpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/sdpo_deepseek_7b",
    model=replace(base.model, path="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    rollout=replace(base.rollout, enable_thinking=None),
)
