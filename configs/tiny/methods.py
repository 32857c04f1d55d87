"""Trains the tiny reasoner with every method and three seeds each, and tabulates the results.

    python -m sdjax.main --config configs/tiny/methods.py

The runs are those of the other configs in this folder. --values 0 runs one seed. An interrupted
run continues with --resume.
"""

from grpo import config as grpo
from sdpo import config as sdpo
from sdpo_answer import config as sdpo_answer
from sdpo_ema import config as sdpo_ema
from sdpo_entropy import config as sdpo_entropy
from sdpo_epistemic import config as sdpo_epistemic
from sdpo_regenerated import config as sdpo_regenerated

from sdjax.config import Sweep

config = Sweep(
    out="runs/tiny/methods",
    runs={
        "sdpo": sdpo,
        "grpo": grpo,
        "sdpo_answer": sdpo_answer,
        "sdpo_regenerated": sdpo_regenerated,
        "sdpo_ema": sdpo_ema,
        "sdpo_epistemic": sdpo_epistemic,
        "sdpo_entropy": sdpo_entropy,
    },
    axis="seed",
    values=(0, 1, 2),
    report=True,
)
