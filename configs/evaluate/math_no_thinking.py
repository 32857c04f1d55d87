"""The paper's evaluation of a model that does not think: Qwen3-8B on AIME, AMC and MATH-500.

    python -m sdjax.main --config configs/evaluate/math_no_thinking.py --model.path MODEL

Sampling and grading as in arXiv:2603.24472: 16 answers each at temperature 0.7 and top-p 0.8.
MODEL may be the folder that a training exported.
"""

from dataclasses import replace

from math_thinking import config as thinking

config = replace(
    thinking,
    out="runs/evaluate_math_no_thinking",
    enable_thinking=False,
    eval=replace(thinking.eval, temperature=0.7, top_p=0.8),
)
