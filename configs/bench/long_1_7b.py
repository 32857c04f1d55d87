"""Measures an SDPO step of a random Qwen3-1.7B with completions of 8,192 tokens: 4 prompts x 8.

python -m sdjax.main --config configs/bench/long_1_7b.py
"""

from sdjax.config import Bench, Optim

config = Bench(
    out="runs/bench/long_1_7b",
    prompts=(4,),
    completion_tokens=8192,
    reprompt_tokens=128 + 8192,
    repeats=1,
    optim=Optim(microbatch=1),
)
