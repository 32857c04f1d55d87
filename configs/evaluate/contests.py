"""AIME 2026, AIME 2025 and HMMT February 2025, 64 answers to each question, with pass@k curves.

    python -m sdjax.main --config configs/evaluate/contests.py --model.path MODEL

Sampling is that of the Qwen3 report (arXiv:2505.09388 section 4.6) for models that think.
--no_plots does without matplotlib. See docs/how-to/evaluate-on-benchmarks.md.
"""

from sdjax.config import Eval, Evaluate, Model
from sdjax.tasks.math import Math

config = Evaluate(
    out="runs/evaluate_contests",
    task=Math(train="", test="aime26"),
    out_of_domain={name: Math(train="", test=name) for name in ("aime25", "hmmt25")},
    model=Model(path="Qwen/Qwen3-8B"),
    max_prompt_tokens=2048,
    enable_thinking=True,
    eval=Eval(
        every=0,
        k=64,
        examples=0,
        batch=10,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        max_completion_tokens=38_912,
    ),
    plots=True,
)
