"""Measures long-tailed rollouts of a random Qwen3-1.7B: lengths with a median of 1/8 of 4,096.

python -m sdjax.main --config configs/bench/tail_1_7b.py

The plain loop decodes 256 sequences in 4 batches of 64, each until its longest sequence ends. The
engine decodes them in 64 slots. Tokens/s counts the tokens of the sequences, without those decoded
after a sequence's end.
"""

from sdjax.config import Bench

config = Bench(out="runs/bench/tail_1_7b", phases=("tail",), completion_tokens=4096, repeats=1)
