"""SDPO on the tiny reasoner without the divergence at tokens of epistemic words.

python -m sdjax.main --config configs/tiny/sdpo_epistemic.py
"""

from dataclasses import replace

from sdpo import config as base

config = replace(
    base,
    out="runs/tiny/sdpo_epistemic",
    loss=replace(base.loss, token_weights="epistemic", epistemic_weight=0.0),
)
