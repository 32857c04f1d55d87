"""SDPO on the tiny reasoner, c = s without search: the teacher reads only the answer's line.

python -m sdjax.main --config configs/tiny/sdpo_answer.py
"""

from dataclasses import replace

from sdpo import config as base

config = replace(
    base, out="runs/tiny/sdpo_answer", reprompt=replace(base.reprompt, strip_thinking=True)
)
