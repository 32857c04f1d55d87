"""SDPO on SciKnowEval biology: Qwen3-8B without thinking.

    python -m sdjax.main --config configs/generalization/sdpo_biology.py
    python -m sdjax.main --config configs/generalization/sdpo_biology.py \
        --model.path allenai/Olmo-3-7B-Instruct --rollout.enable_thinking None \
        --out runs/generalization/sdpo_biology_olmo3

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 50.6 within 1 h and 56.8 within
5 h of 4 GPUs, from 30.8 at the start. The second command, Olmo: 48.0 and 52.8, from 16.2.
"""

from dataclasses import replace

from sdpo_chemistry import config as base

from sdjax.tasks.sciknoweval import SciKnowEval

config = replace(
    base,
    out="runs/generalization/sdpo_biology",
    task=SciKnowEval(domain="biology", grader="choice_reference"),
    steps=30 * (450 // 32),
)
