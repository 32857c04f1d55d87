"""Table 1 of arXiv:2603.24472 for the tiny reasoner: answers with and without a solution.

    python -m sdjax.main --config configs/tiny/study.py

The base model was trained on answers to questions with a solution (tasks/countdown_traces). So the
table shows that the model learned the behaviour, not that it arises without training. For two CPU
cores: --problems 4 --tried 32 --eval.k 4 --eval.batch 8
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
    # The templates of the traces that the base model learned from.
    reprompt=Reprompt(),
    eval=Eval(every=0, k=8, temperature=1.0, top_p=1.0, max_completion_tokens=256),
)
