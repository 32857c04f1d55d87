"""SDPO and GRPO on 1, 8, 64 and 512 questions: the tiny reasoner (arXiv:2603.24472 section 6.2).

    python -m sdjax.main --config configs/tiny/coverage.py

As in the paper, a step has 32 groups for any number of questions, so a single question is sampled
in all 32. An interrupted run continues with --resume.
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
