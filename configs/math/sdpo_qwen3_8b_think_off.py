"""SDPO whose teacher reads a whole correct completion (c = s): Qwen3-8B without thinking.

    python -m sdjax.main --config configs/math/sdpo_qwen3_8b_think_off.py
    python -m sdjax.main --config configs/evaluate/math_no_thinking.py \
        --model.path runs/math/sdpo_qwen3_8b_think_off/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected (arXiv:2603.24472, runs without thinking): AMC23 rises from .67 to .73 with completions
half as long; AIME24 falls from .25 to .23.
"""

from dataclasses import replace

from sdpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/sdpo_qwen3_8b_think_off",
    rollout=replace(base.rollout, enable_thinking=False),
)
