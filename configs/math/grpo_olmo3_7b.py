"""GRPO, the baseline: Olmo-3-7B-Instruct, on DAPO-Math.

    python -m sdjax.main --config configs/math/grpo_olmo3_7b.py
    python -m sdjax.main --config configs/evaluate/math_no_thinking.py \
        --model.path runs/math/grpo_olmo3_7b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: AIME24 not below its start, where SDPO's falls (arXiv:2603.24472; figure unknown).
"""

from dataclasses import replace

from grpo_qwen3_8b import config as base

config = replace(
    base,
    out="runs/math/grpo_olmo3_7b",
    model=replace(base.model, path="allenai/Olmo-3-7B-Instruct"),
    rollout=replace(base.rollout, enable_thinking=None),
)
