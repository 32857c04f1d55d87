"""GRPO, the baseline: Qwen3-8B, thinking, on DAPO-Math.

    python -m sdjax.main --config configs/math/grpo_qwen3_8b.py

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: AIME24 about as at the start or better, where SDPO loses 12.1% of its value
(arXiv:2603.24472, its runs with thinking; no figure of GRPO's is at hand).

GRPO as the paper's code runs it: no division by the standard deviation, clips 0.2 and 0.28, dual
clip 3, no KL term, mean over a completion's tokens and then over completions. Its learning rate
is a tenth of SDPO's.
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
