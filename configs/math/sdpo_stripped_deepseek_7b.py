"""SDPO whose teacher reads a completion without its thinking: DeepSeek-R1-Distill-Qwen-7B.

    python -m sdjax.main --config configs/math/sdpo_stripped_deepseek_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_stripped_deepseek_7b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: a smaller fall than with c = s (arXiv:2603.24472, first runs).
"""

from dataclasses import replace

from sdpo_deepseek_7b import config as base

config = replace(
    base,
    out="runs/math/sdpo_stripped_deepseek_7b",
    reprompt=replace(base.reprompt, strip_thinking=True),
)
