"""Measures the chunked head with its gradient: 32,768 tokens, width 2,048, vocabulary 151,936.

    python -m sdjax.main --config configs/bench/loss.py
    python -m sdjax.main --config configs/bench/loss.py --loss.divergence top_k \
        --out runs/bench/loss_top_k

top_k keeps the student's 100 likeliest tokens and a tail.
"""

from sdjax.config import Bench, Loss

config = Bench(out="runs/bench/loss", phases=("head",), loss=Loss(chunk_tokens=4096))
