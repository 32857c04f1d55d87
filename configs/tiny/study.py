"""The first table of arXiv:2603.24472 on the tiny reasoner: answers with and without a solution.

    python -m sdjax.main --config configs/tiny/study.py

How the base model answers a question that comes with a solution was taught (tasks/
countdown_traces): this shows that it was learned, not that it comes of itself. On two CPU cores:
--problems 4 --tried 32 --eval.k 4 --eval.batch 8
"""

from sdpo import config as miniature

from sdjax.config import Eval, Reprompt, Study

config = Study(
    out="runs/tiny/study",
    task=miniature.task,
    problems=100,
    tried=512,
    model=miniature.model,
    max_prompt_tokens=64,
    # The words in which the base model has met solutions.
    reprompt=Reprompt(),
    eval=Eval(every=0, k=8, temperature=1.0, top_p=1.0, max_completion_tokens=256),
)
