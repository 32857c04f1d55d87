"""Trains a tiny reasoner with SDPO and with GRPO, in four minutes on a laptop, and compares them.

    python -m sdjax.main --config configs/quickstart.py

A model of 5 million parameters (docs/miniature.md) searches aloud for sums, differences and
products that make a number: "Hmm, too small. Maybe ...". The problems in domain are trained on;
those out of domain need a division. The table at the end shows scores and epistemic words of both.
The report, an HTML file, shows every answer. configs/tiny/methods.py is the full experiment.
"""

from dataclasses import replace

from sdjax.config import (
    Checkpoint,
    Eval,
    Loss,
    Model,
    Optim,
    Reprompt,
    Rollout,
    Sweep,
    Teacher,
    Train,
)
from sdjax.tasks.countdown import Countdown

sdpo = Train(
    out="",  # the sweep sets it
    task=Countdown(name="times", needs="*"),
    out_of_domain={"divide": Countdown(operations="+-*/", needs="/", target_low=2, target_high=99)},
    steps=11,
    model=Model(path="package:sdjax.tiny", compute_dtype="float32", remat="none"),
    rollout=Rollout(
        prompts_per_step=8,
        group_size=4,
        temperature=1.0,
        max_prompt_tokens=64,
        max_completion_tokens=256,
    ),
    reprompt=Reprompt(max_tokens=352),
    teacher=Teacher(kind="initial"),
    loss=Loss(distillation=1.0, alpha=0.5),
    optim=Optim(lr=4e-4, warmup_steps=2, row_tokens=768, microbatch=2),
    eval=Eval(every=0, k=2, examples=32, temperature=1.0, top_p=1.0, max_completion_tokens=256),
    checkpoint=Checkpoint(every=0),
)

config = Sweep(
    out="runs/quickstart",
    runs={"sdpo": sdpo, "grpo": replace(sdpo, loss=Loss(distillation=0.0))},
    axis="seed",
    values=(0,),
    report=True,
)
