"""Writes the traces that the tiny reasoner's base model learns from.

python -m sdjax.main --config configs/tiny/traces.py
"""

from sdjax.config import Shape, Traces
from sdjax.tasks.countdown import Countdown

config = Traces(
    out="runs/tiny/traces",
    rows=200_000,
    tasks={
        "times": Countdown(needs="*"),
        "large": Countdown(needs="*", target_low=50, target_high=99),
        "divide": Countdown(operations="+-*/", needs="/", target_low=2, target_high=99),
        "four": Countdown(numbers=4),
        "any": Countdown(operations="+-*/", target_low=2, target_high=99),
    },
    shares={"times": 0.25, "large": 0.15, "divide": 0.15, "four": 0.2, "any": 0.25},
    # 5.0 million parameters.
    shape=Shape(
        model_type="llama",
        vocab_size=576,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
    ),
)
