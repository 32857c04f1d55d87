"""SDPO whose teacher is a moving average at rate 0.05: Olmo-3-7B-Instruct.

    python -m sdjax.main --config configs/math/sdpo_ema_olmo3_7b.py
    python -m sdjax.main --config configs/evaluate/math_no_thinking.py \
        --model.path runs/math/sdpo_ema_olmo3_7b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: length and score fall faster than with the initial teacher (arXiv:2603.24472, ablation of
the teacher's rate).
"""

from dataclasses import replace

from sdpo_olmo3_7b import config as base

from sdjax.config import Teacher

config = replace(
    base,
    out="runs/math/sdpo_ema_olmo3_7b",
    teacher=Teacher(kind="ema", ema_rate=0.05),
)
