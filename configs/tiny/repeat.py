"""Repeats the first 60 updates of the base model without evaluations; two runs give the same bits.

python -m sdjax.main --config configs/tiny/repeat.py
"""

from dataclasses import replace

from base import config as base

config = replace(base, out="runs/tiny/repeat", task=None, out_of_domain={}, steps=60, log_every=20)
