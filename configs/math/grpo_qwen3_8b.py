"""GRPO, the baseline: Qwen3-8B, thinking, on DAPO-Math.

    python -m sdjax.main --config configs/math/grpo_qwen3_8b.py

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected (arXiv:2603.24472, runs with thinking): AIME24 stays about the same or rises, while SDPO
loses 12.1% of its value. sdjax has no figure for GRPO.

The settings follow the paper's code: no division by the standard deviation, clips 0.2 and 0.28,
dual clip 3, and no KL term. The loss is a mean over a completion's tokens, then over completions.
The learning rate is a tenth of SDPO's.
"""

from dataclasses import replace

from sdpo_qwen3_8b import config as sdpo

from sdjax.config import Teacher

config = replace(
    sdpo,
    out="runs/math/grpo_qwen3_8b",
    loss=replace(sdpo.loss, distillation=0.0),
    teacher=Teacher(kind="live"),  # no teacher runs; a live one takes no memory
    optim=replace(sdpo.optim, lr=1e-6),
)
