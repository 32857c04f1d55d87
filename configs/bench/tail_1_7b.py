"""Long-tailed rollouts of a random-weight Qwen3-1.7B: lengths with a median of 1/8 of 4,096.

python -m sdjax.main --config configs/bench/tail_1_7b.py

256 sequences: by the plain loop in 4 batches of 64, each decoded until its longest ends, and by
the engine in 64 slots. Tokens/s counts the tokens of the sequences, not those decoded after their
end.
"""

from sdjax.config import Bench

config = Bench(out="runs/bench/tail_1_7b", phases=("tail",), completion_tokens=4096, repeats=1)
