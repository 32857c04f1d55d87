"""Measures an SDPO step of a random Qwen3-1.7B that trains adapters, on a GPU of 16 GB.

    python -m sdjax.main --config configs/bench/lora_1_7b.py
    python -m sdjax.main --config configs/bench/lora_1_7b.py --lora.rank 0 \
        --out runs/bench/full_1_7b

The step is that of step_1_7b.py: 8 prompts x 8, 128 prompt and 512 new tokens. The teacher reads
the prompt and 512 more tokens. Every matrix has an adapter of rank 16; the teacher has none.
"""

from sdjax.config import Bench, Lora, Loss, Optim

config = Bench(
    out="runs/bench/lora_1_7b",
    lora=Lora(rank=16, alpha=32.0),
    loss=Loss(chunk_tokens=512),
    optim=Optim(microbatch=8),
)
