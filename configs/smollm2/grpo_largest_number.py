"""GRPO on SmolLM2-135M-Instruct: the largest of 4 to 6 numbers. 100 steps of 32 prompts x 8.

python -m sdjax.main --config configs/smollm2/grpo_largest_number.py --seed 0
"""

from dataclasses import replace

from sdpo_largest_number import config as sdpo

from sdjax.config import Loss, Reprompt

config = replace(
    sdpo,
    out="runs/smollm2_grpo_largest_number",
    loss=Loss(distillation=0.0),
    reprompt=Reprompt(),  # the defaults, because no teacher runs
)
