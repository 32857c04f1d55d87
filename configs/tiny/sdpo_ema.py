"""SDPO on the tiny reasoner with a teacher that is a moving average of the student.

python -m sdjax.main --config configs/tiny/sdpo_ema.py
"""

from dataclasses import replace

from sdpo import config as base

from sdjax.config import Teacher

config = replace(base, out="runs/tiny/sdpo_ema", teacher=Teacher(kind="ema", ema_rate=0.05))
