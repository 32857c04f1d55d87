"""The chunked head alone, with gradient: 32,768 tokens, hidden size 2,048, vocabulary 151,936.

    python -m sdjax.main --config configs/bench/loss.py
    python -m sdjax.main --config configs/bench/loss.py --loss.divergence top_k \
        --out runs/bench/loss_top_k

top_k is the 100 likeliest tokens of the student and a tail.
"""

from sdjax.config import Bench, Loss

config = Bench(out="runs/bench/loss", phases=("head",), loss=Loss(chunk_tokens=4096))
