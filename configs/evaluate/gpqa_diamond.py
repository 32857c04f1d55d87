"""GPQA-diamond, 10 answers to each question.

    HF_TOKEN=... python -m sdjax.main --config configs/evaluate/gpqa_diamond.py --model.path MODEL

The token's account must have accepted the terms of Idavidrein/gpqa on the hub. They ask that nobody
publishes the questions, so keep answers.jsonl private. Sampling is that of the Qwen3 report
(arXiv:2505.09388 section 4.6). See docs/how-to/evaluate-on-benchmarks.md.
"""

from sdjax.config import Eval, Evaluate, Model
from sdjax.tasks.gpqa import GPQA

config = Evaluate(
    out="runs/evaluate_gpqa_diamond",
    task=GPQA(),
    model=Model(path="Qwen/Qwen3-8B"),
    max_prompt_tokens=4096,
    enable_thinking=True,
    eval=Eval(
        every=0,
        k=10,
        examples=0,
        batch=32,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        max_completion_tokens=32_768,
    ),
)
