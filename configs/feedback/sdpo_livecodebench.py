"""SDPO with rich feedback on LiveCodeBench v6: Qwen3-8B without thinking.

    python -m sdjax.main --config configs/feedback/sdpo_livecodebench.py

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, LiveCodeBench v6): best avg@4 of 48.8, from 27.9 at the start; easy,
medium and hard 91.7, 46.6 and 18.9. Table 6: 48.3 with feedback and solution, 39.9 with feedback
alone, 42.6 with the solution alone.

The teacher reads a program of the same group that passed its tests. If there is none, it reads the
errors of the completion's own tests. Settings follow the paper's code: one update per prompt,
reverse KL, the teacher moves once per step. Programs run in a sandbox (bubblewrap).
"""

from sdjax.config import (
    Checkpoint,
    Eval,
    Loss,
    Model,
    Optim,
    Reprompt,
    Rollout,
    Teacher,
    Train,
)
from sdjax.tasks.livecodebench import LiveCodeBench

config = Train(
    out="runs/feedback/sdpo_livecodebench",
    task=LiveCodeBench(grader="code_reference"),
    steps=30 * (131 // 32),
    model=Model(path="Qwen/Qwen3-8B"),
    rollout=Rollout(
        prompts_per_step=32,
        group_size=8,
        temperature=1.0,
        max_prompt_tokens=2048,
        max_completion_tokens=8192,
        enable_thinking=False,
    ),
    reprompt=Reprompt(
        demonstration="first",
        feedback=True,
        feedback_only_without_solution=True,
        strip_thinking=True,
        max_tokens=10_240,
        truncation="right",
    ),
    teacher=Teacher(kind="ema", ema_rate=0.01),
    loss=Loss(distillation=1.0, divergence="top_k", top_k=20, alpha=1.0, scale="reference"),
    optim=Optim(lr=1e-6, warmup_steps=0, minibatches=32, microbatch=8, row_tokens=20_480),
    eval=Eval(every=5, k=4, examples=0, batch=32, max_completion_tokens=8192),
    checkpoint=Checkpoint(every=30, keep=2),
)
