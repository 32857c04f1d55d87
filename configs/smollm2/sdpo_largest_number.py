"""SDPO on SmolLM2-135M-Instruct: the largest of 4 to 6 numbers. 100 steps of 32 prompts x 8.

python -m sdjax.main --config configs/smollm2/sdpo_largest_number.py --seed 0
"""

from dataclasses import replace

from sdpo_chain_sum import config as base

from sdjax.tasks.largest_number import LargestNumber

config = replace(
    base,
    out="runs/smollm2_sdpo_largest_number",
    task=LargestNumber(held_out=200),
    eval=replace(base.eval, examples=200, batch=200),
)
