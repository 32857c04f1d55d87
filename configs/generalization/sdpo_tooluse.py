"""SDPO on tool use (ToolAlpaca): Qwen3-8B without thinking.

    python -m sdjax.main --config configs/generalization/sdpo_tooluse.py
    python -m sdjax.main --config configs/generalization/sdpo_tooluse.py \
        --model.path allenai/Olmo-3-7B-Instruct --rollout.enable_thinking None \
        --out runs/generalization/sdpo_tooluse_olmo3

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 68.0 within 1 h and 68.5 within
5 h of 4 GPUs, from 57.5 at the start. The second command, Olmo: 60.8 and 62.1, from 39.3.

Training rows are those whose id is not in the test set. Two of the test set's 68 rows accept no
answer under the reference's grader.
"""

from dataclasses import replace

from sdpo_chemistry import config as base

from sdjax.tasks.tooluse import ToolUse

config = replace(
    base,
    out="runs/generalization/sdpo_tooluse",
    task=ToolUse(grader="tooluse_reference"),
    steps=30 * (4046 // 32),
)
