"""GRPO on SciKnowEval chemistry: Qwen3-8B without thinking, four updates per step.

    python -m sdjax.main --config configs/generalization/grpo_chemistry.py
    python -m sdjax.main --config configs/generalization/grpo_chemistry.py \
        --optim.minibatches 1 --optim.lr 1e-5 --out runs/generalization/grpo_chemistry_on_policy

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 65.9 within 1 h and 74.5 within
5 h of 4 GPUs, from 41.2 at the start. The second command, on-policy: 63.3 and 63.4.
"""

from dataclasses import replace

from sdpo_chemistry import config as sdpo

from sdjax.config import Teacher

config = replace(
    sdpo,
    out="runs/generalization/grpo_chemistry",
    loss=replace(sdpo.loss, distillation=0.0),
    teacher=Teacher(kind="live"),  # no teacher runs; a live one takes no memory
    optim=replace(sdpo.optim, minibatches=4, lr=1e-6),
)
