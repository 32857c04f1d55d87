"""SDPO whose teacher reads a completion without its thinking: Qwen3-1.7B, thinking.

    python -m sdjax.main --config configs/math/sdpo_stripped_qwen3_1_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_stripped_qwen3_1_7b/model

Slice: v5p-32 (16 chips, topology v5p:2x2x4), one row per chip.
Expected: a smaller fall than with c = s (arXiv:2603.24472, runs with thinking).
"""

from dataclasses import replace

from sdpo_qwen3_1_7b import config as base

config = replace(
    base,
    out="runs/math/sdpo_stripped_qwen3_1_7b",
    reprompt=replace(base.reprompt, strip_thinking=True),
)
