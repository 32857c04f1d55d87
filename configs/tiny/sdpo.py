"""SDPO on the tiny reasoner (c = s): the teacher reads a sibling's correct trace with its search.

    python -m sdjax.main --config configs/tiny/sdpo.py
    python -m sdjax.main --config configs/tiny/sdpo.py --task.size 8 --out runs/tiny/sdpo_8

In domain: three numbers, targets from 10 to 49, a multiplication is needed. Out of domain: larger
targets; a division is needed; four numbers. The base model has learned all of these. For two CPU
cores: --steps 4 --rollout.prompts_per_step 4 --optim.microbatch 16 --eval.examples 16
"""

from sdjax.config import Checkpoint, Eval, Loss, Model, Optim, Reprompt, Rollout, Teacher, Train
from sdjax.tasks.countdown import Countdown

config = Train(
    out="runs/tiny/sdpo",
    task=Countdown(name="times", needs="*"),
    out_of_domain={
        "large": Countdown(needs="*", target_low=50, target_high=99),
        "divide": Countdown(operations="+-*/", needs="/", target_low=2, target_high=99),
        "four": Countdown(numbers=4),
    },
    steps=60,
    model=Model(path="package:sdjax.tiny", remat="none"),
    rollout=Rollout(
        prompts_per_step=32,
        group_size=8,
        temperature=1.0,
        max_prompt_tokens=64,
        max_completion_tokens=256,
    ),
    reprompt=Reprompt(max_tokens=352),
    teacher=Teacher(kind="initial"),
    loss=Loss(distillation=1.0, alpha=0.5),
    optim=Optim(lr=1e-4, warmup_steps=5, microbatch=64),
    eval=Eval(every=30, k=4, examples=200, temperature=1.0, top_p=1.0, max_completion_tokens=256),
    checkpoint=Checkpoint(every=0),
)
