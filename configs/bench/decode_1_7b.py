"""Measures decoding of a random Qwen3-1.7B: 64 and 256 sequences, 128 prompt and 512 new tokens.

python -m sdjax.main --config configs/bench/decode_1_7b.py
"""

from sdjax.config import Bench

config = Bench(out="runs/bench/decode_1_7b", phases=("rollout",), prompts=(8, 32))
