"""GRPO on SmolLM2-135M-Instruct: sums of two one-digit numbers. 100 steps of 32 prompts x 8.

python -m sdjax.main --config configs/smollm2/grpo_chain_sum.py --seed 0
"""

from dataclasses import replace

from sdpo_chain_sum import config as sdpo

from sdjax.config import Loss, Reprompt

config = replace(
    sdpo,
    out="runs/smollm2_grpo_chain_sum",
    loss=Loss(distillation=0.0),
    reprompt=Reprompt(),  # the defaults, because no teacher runs
)
