"""GRPO on a small set of questions: Qwen3-8B without thinking on |D| = 64 from DAPO-Math.

    python -m sdjax.main --config configs/small/grpo_seen.py
    python -m sdjax.main --config configs/small/grpo_seen.py --task.train seen_512 \
        --out runs/small/grpo_seen_512

The other sizes: seen_1x64 (one question, 64 times), seen_8x8, seen_128, seen_512.
Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected (arXiv:2603.24472 section 6.2, figures): in domain worse than SDPO for |D| <= 128 and
better at 512. Out of domain (AIME24, MATH-500) it improves with |D|.
"""

from dataclasses import replace

from sdpo_seen import config as sdpo

from sdjax.config import Teacher

config = replace(
    sdpo,
    out="runs/small/grpo_seen",
    loss=replace(sdpo.loss, distillation=0.0),
    teacher=Teacher(kind="live"),  # no teacher runs; a live one takes no memory
    optim=replace(sdpo.optim, lr=1e-6),
)
