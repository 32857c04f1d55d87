"""SDPO and GRPO on 1, 8, 64 and 512 questions, the tiny reasoner (arXiv:2603.24472 section 6.2).

    python -m sdjax.main --config configs/tiny/coverage.py

A step has 32 groups whatever the number of questions, as in the paper: one question is asked 32
times. Interrupted, it goes on with --resume.
"""

from grpo import config as grpo
from sdpo import config as sdpo

from sdjax.config import Sweep

config = Sweep(
    out="runs/tiny/coverage",
    runs={"sdpo": sdpo, "grpo": grpo},
    axis="data.limit",
    values=(1, 8, 64, 512),
)
