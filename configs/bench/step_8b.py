"""Measures an SDPO step of a random Qwen3-8B on two GPUs of 141 GB, sized as step_1_7b.py.

    python -m sdjax.main --config configs/bench/step_8b.py
    python -m sdjax.main --config configs/plan.py --train configs/bench/step_8b.py --topology h200:2

Both GPUs share parameters, Adam, gradients and the teacher's copy. Each decodes half of the
completions with a whole bfloat16 copy of the weights. The second command estimates the memory and
time of that.
"""

from sdjax.config import Bench, Loss, Mesh, Optim, Shape

config = Bench(
    out="runs/bench/step_8b",
    shape=Shape(
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    repeats=1,
    loss=Loss(chunk_tokens=1024),
    optim=Optim(microbatch=16),
    mesh=Mesh(fsdp=2),
)
