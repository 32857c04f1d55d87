"""Measures an SDPO step of a random Qwen3-1.7B: 8 prompts x 8, 128 prompt and 512 new tokens.

    python -m sdjax.main --config configs/bench/step_1_7b.py
    python -m sdjax.main --config configs/bench/step_1_7b.py --loss.divergence top_k \
        --out runs/bench/step_1_7b_top_k

The teacher reads the prompt and a demonstration of 512 tokens. Parameters and Adam are float32, the
initial teacher's copy is bfloat16. On an H200 the update takes 1.61 s and 35.1 GB with chunks of
512 tokens. Chunks of 1,024 tokens take 36.1 GB and 1.7 % less time, measured in one run.
"""

from sdjax.config import Bench, Loss, Optim

config = Bench(out="runs/bench/step_1_7b", loss=Loss(chunk_tokens=512), optim=Optim(microbatch=16))
