"""SDPO and GRPO on 1 and 8 sums for two steps each, on a CPU: shows a sweep in minutes.

    python -m sdjax.main --config configs/sweep/smollm2_cpu.py

Its figures mean nothing; those of configs/sweep/smollm2_coverage.py do.
"""

from dataclasses import replace

from smollm2_coverage import SUMS, SYSTEM
from smollm2_coverage import config as full
from smollm2_coverage import sdpo as base

from sdjax.config import Checkpoint, Loss, Optim
from sdjax.tasks.arithmetic import Arithmetic

ONE_DIGIT = SUMS | {"max_digits": 1}

sdpo = replace(
    base,
    task=Arithmetic(name="chain_sum", options=ONE_DIGIT, system=SYSTEM, held_out=8),
    out_of_domain={
        "longer": Arithmetic(
            name="chain_sum", options=ONE_DIGIT | {"max_terms": 3}, system=SYSTEM, held_out=8
        )
    },
    steps=2,
    model=replace(base.model, compute_dtype="float32", remat="none"),
    rollout=replace(
        base.rollout,
        prompts_per_step=2,
        group_size=4,
        max_prompt_tokens=128,
        max_completion_tokens=24,
    ),
    reprompt=replace(base.reprompt, max_tokens=256),
    optim=Optim(lr=3e-5, warmup_steps=0, microbatch=4),
    eval=replace(base.eval, every=0, k=1, examples=8, batch=8, max_completion_tokens=24),
    checkpoint=Checkpoint(every=0, export=False),
)

config = replace(
    full,
    out="runs/coverage_cpu",
    runs={"sdpo": sdpo, "grpo": replace(sdpo, loss=Loss(distillation=0.0))},
    values=(1, 8),
)
