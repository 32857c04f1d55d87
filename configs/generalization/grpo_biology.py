"""GRPO on SciKnowEval biology: Qwen3-8B without thinking, four updates a step.

    python -m sdjax.main --config configs/generalization/grpo_biology.py
    python -m sdjax.main --config configs/generalization/grpo_biology.py \
        --optim.minibatches 1 --optim.lr 1e-5 --out runs/generalization/grpo_biology_on_policy

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row a chip.
Expected: best avg@16 within 1 h and 5 h of 4 GPUs: 35.1 and 59.9, from 30.8 at the start; the
second command, on-policy, 49.8 and 49.8 (arXiv:2601.20802 table 3 of its later version).
"""

from dataclasses import replace

from grpo_chemistry import config as base

from sdjax.tasks.sciknoweval import SciKnowEval

config = replace(
    base,
    out="runs/generalization/grpo_biology",
    task=SciKnowEval(domain="biology", grader="choice_reference"),
    steps=30 * (450 // 32),
)
