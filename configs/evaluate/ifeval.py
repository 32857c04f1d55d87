"""IFEval by lm-evaluation-harness: whether a model still follows instructions.

    pip install 'sdjax[lm-eval]'
    python -m sdjax.main --config configs/evaluate/ifeval.py --model.path MODEL

Sampling is the task's: greedy, at most 1,280 tokens, without thinking. A model that thinks needs
--enable_thinking True --lm_eval.sampling eval. See docs/how-to/evaluate-on-benchmarks.md.
"""

from sdjax.config import Eval, Evaluate, Harness, Model

config = Evaluate(
    out="runs/evaluate_ifeval",
    model=Model(path="Qwen/Qwen3-8B"),
    enable_thinking=False,
    eval=Eval(every=0, temperature=0.6, top_p=0.95, top_k=20, max_completion_tokens=32_768),
    lm_eval=Harness(tasks=("ifeval",)),
)
