"""A whole SDPO step of a random-weight Qwen3-1.7B that trains adapters, on a GPU of 16 GB.

    python -m sdjax.main --config configs/bench/lora_1_7b.py
    python -m sdjax.main --config configs/bench/lora_1_7b.py --lora.rank 0 \
        --out runs/bench/full_1_7b

The step of step_1_7b.py: 8 prompts x 8, 128 prompt and 512 new tokens, a teacher that reads the
prompt and 512 tokens more. Rank 16 on every matrix; the teacher is the model without adapters.
"""

from sdjax.config import Bench, Lora, Loss, Optim

config = Bench(
    out="runs/bench/lora_1_7b",
    lora=Lora(rank=16, alpha=32.0),
    loss=Loss(chunk_tokens=512),
    optim=Optim(microbatch=8),
)
