"""SDPO on SciKnowEval material: Qwen3-8B without thinking.

    python -m sdjax.main --config configs/generalization/sdpo_material.py
    python -m sdjax.main --config configs/generalization/sdpo_material.py \
        --model.path allenai/Olmo-3-7B-Instruct --rollout.enable_thinking None \
        --out runs/generalization/sdpo_material_olmo3

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 72.1 within 1 h and 78.4 within
5 h of 4 GPUs, from 58.9 at the start. The second command, Olmo: 73.7 and 79.1, from 36.7.
"""

from dataclasses import replace

from sdpo_chemistry import config as base

from sdjax.tasks.sciknoweval import SciKnowEval

config = replace(
    base,
    out="runs/generalization/sdpo_material",
    task=SciKnowEval(domain="material", grader="choice_reference"),
    steps=30 * (841 // 32),
)
