"""On-policy distillation of Qwen3-8B into Qwen3-1.7B, thinking: no demonstration, no reward.

    python -m sdjax.main --config configs/math/distil_qwen3_1_7b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/distil_qwen3_1_7b/model

The student answers; the larger model reads the same prompt and scores every token
(docs/how-to/distil-from-a-model.md). The loss is KL(student || teacher), with one completion of
each question.
"""

from dataclasses import replace

from sdpo_qwen3_1_7b import config as base

from sdjax.config import Target, Teacher

config = replace(
    base,
    out="runs/math/distil_qwen3_1_7b",
    rollout=replace(base.rollout, group_size=1),
    teacher=Teacher(kind="model", path="Qwen/Qwen3-8B"),
    target=Target(context="plain"),
    loss=replace(base.loss, alpha=1.0),
)
