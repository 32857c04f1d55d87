"""GRPO on LiveCodeBench v6: Qwen3-8B without thinking.

    python -m sdjax.main --config configs/feedback/grpo_livecodebench.py

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, LiveCodeBench v6): best avg@4 of 41.2, from 27.9 at the start; easy,
medium and hard 90.1, 37.8 and 11.6.
"""

from dataclasses import replace

from sdpo_livecodebench import config as sdpo

from sdjax.config import Loss, Teacher

config = replace(
    sdpo,
    out="runs/feedback/grpo_livecodebench",
    loss=Loss(distillation=0.0),
    teacher=Teacher(kind="live"),  # no teacher runs; a live one takes no memory
    optim=replace(sdpo.optim, minibatches=4),
)
