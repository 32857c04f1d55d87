"""GRPO on tool use (ToolAlpaca): Qwen3-8B without thinking, four updates per step.

    python -m sdjax.main --config configs/generalization/grpo_tooluse.py
    python -m sdjax.main --config configs/generalization/grpo_tooluse.py \
        --optim.minibatches 1 --optim.lr 1e-5 --out runs/generalization/grpo_tooluse_on_policy

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 64.9 within 1 h and 67.7 within
5 h of 4 GPUs, from 57.5 at the start. The second command, on-policy: 60.2 and 65.7.
"""

from dataclasses import replace

from grpo_chemistry import config as base

from sdjax.tasks.tooluse import ToolUse

config = replace(
    base,
    out="runs/generalization/grpo_tooluse",
    task=ToolUse(grader="tooluse_reference"),
    steps=30 * (4046 // 32),
)
