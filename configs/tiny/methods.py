"""Every way of training the tiny reasoner, three seeds each, and a table of what it did.

    python -m sdjax.main --config configs/tiny/methods.py

The runs are those of the configs beside this one. --values 0 takes one seed. Interrupted, it goes
on with --resume.
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
