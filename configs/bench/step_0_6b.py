"""Measures an SDPO step of a random Qwen3-0.6B with the sizes of step_1_7b.py.

python -m sdjax.main --config configs/bench/step_0_6b.py
python -m sdjax.main --config configs/bench/step_0_6b.py --loss.divergence top_k
"""

from sdjax.config import Bench, Loss, Optim, Shape

config = Bench(
    out="runs/bench/step_0_6b",
    shape=Shape(hidden_size=1024, intermediate_size=3072),
    loss=Loss(chunk_tokens=1024),
    optim=Optim(microbatch=16),
)
