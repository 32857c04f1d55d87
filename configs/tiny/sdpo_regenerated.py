"""SDPO on the tiny reasoner with a regenerated solution: the teacher reads the model's new answer.

The model answers once more with a sibling's correct trace in its prompt. If the new answer is
correct too, the teacher reads it (arXiv:2603.24472, condition 4).

    python -m sdjax.main --config configs/tiny/sdpo_regenerated.py
"""

from dataclasses import replace

from sdpo import config as base

config = replace(
    base, out="runs/tiny/sdpo_regenerated", reprompt=replace(base.reprompt, regenerate=True)
)
