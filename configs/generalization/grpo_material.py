"""GRPO on SciKnowEval material: Qwen3-8B without thinking, four updates per step.

    python -m sdjax.main --config configs/generalization/grpo_material.py
    python -m sdjax.main --config configs/generalization/grpo_material.py \
        --optim.minibatches 1 --optim.lr 1e-5 --out runs/generalization/grpo_material_on_policy

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 74.3 within 1 h and 77.1 within
5 h of 4 GPUs, from 58.9 at the start. The second command, on-policy: 73.9 and 74.1.
"""

from dataclasses import replace

from grpo_chemistry import config as base

from sdjax.tasks.sciknoweval import SciKnowEval

config = replace(
    base,
    out="runs/generalization/grpo_material",
    task=SciKnowEval(domain="material", grader="choice_reference"),
    steps=30 * (841 // 32),
)
