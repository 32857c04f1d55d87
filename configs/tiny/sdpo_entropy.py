"""SDPO on the tiny reasoner with smaller weights on tokens where the teacher is uncertain.

python -m sdjax.main --config configs/tiny/sdpo_entropy.py
"""

from dataclasses import replace

from sdpo import config as base

config = replace(
    base,
    out="runs/tiny/sdpo_entropy",
    loss=replace(base.loss, token_weights="teacher_entropy", weight_floor=0.0, entropy_scale=0.5),
)
