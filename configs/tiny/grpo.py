"""GRPO on the tiny reasoner, the baseline: it learns from rewards alone, without a teacher.

python -m sdjax.main --config configs/tiny/grpo.py
"""

from dataclasses import replace

from sdpo import config as base

config = replace(base, out="runs/tiny/grpo", loss=replace(base.loss, distillation=0.0))
