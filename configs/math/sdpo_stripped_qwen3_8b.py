"""SDPO whose teacher reads a completion without its thinking: Qwen3-8B, thinking.

    python -m sdjax.main --config configs/math/sdpo_stripped_qwen3_8b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_stripped_qwen3_8b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: a smaller fall than with c = s (arXiv:2603.24472, runs with thinking).
"""

from dataclasses import replace

from sdpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/sdpo_stripped_qwen3_8b",
    reprompt=replace(base.reprompt, strip_thinking=True),
)
