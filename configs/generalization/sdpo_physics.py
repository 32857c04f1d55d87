"""SDPO on SciKnowEval physics: Qwen3-8B without thinking.

    python -m sdjax.main --config configs/generalization/sdpo_physics.py
    python -m sdjax.main --config configs/generalization/sdpo_physics.py \
        --model.path allenai/Olmo-3-7B-Instruct --rollout.enable_thinking None \
        --out runs/generalization/sdpo_physics_olmo3

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 66.6 within 1 h and 75.6 within
5 h of 4 GPUs, from 59.2 at the start. The second command, Olmo: 59.9 and 66.1, from 37.7.
"""

from dataclasses import replace

from sdpo_chemistry import config as base

from sdjax.tasks.sciknoweval import SciKnowEval

config = replace(
    base,
    out="runs/generalization/sdpo_physics",
    task=SciKnowEval(domain="physics", grader="choice_reference"),
    steps=30 * (720 // 32),
)
