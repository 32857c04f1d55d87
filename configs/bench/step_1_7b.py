"""A whole SDPO step of a random-weight Qwen3-1.7B: 8 prompts x 8, 128 prompt and 512 new tokens.

    python -m sdjax.main --config configs/bench/step_1_7b.py
    python -m sdjax.main --config configs/bench/step_1_7b.py --loss.divergence top_k \
        --out runs/bench/step_1_7b_top_k

The teacher reads the prompt and a demonstration of 512 tokens. Parameters and Adam are float32,
the initial teacher's copy bfloat16.
"""

from sdjax.config import Bench

config = Bench(out="runs/bench/step_1_7b")
