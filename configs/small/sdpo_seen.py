"""SDPO on a small set of questions: Qwen3-8B without thinking on |D| = 64 from DAPO-Math.

    python -m sdjax.main --config configs/small/sdpo_seen.py
    python -m sdjax.main --config configs/small/sdpo_seen.py --task.train seen_1x64 \
        --out runs/small/sdpo_seen_1x64

The other sizes: seen_1x64 (one question, 64 times), seen_8x8, seen_128, seen_512.
Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected (arXiv:2603.24472 section 6.2, figures): in domain better than GRPO for |D| <= 128, with
completions up to 8 times shorter, and worse at 512. Out of domain (AIME24, MATH-500) it is worse
for smaller |D|, and at 512 still below the start.

Repeated rows stay separate, as in the paper's code: seen_1x64 makes 64 groups of 8.
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
from sdjax.tasks.math import Math

config = Train(
    out="runs/small/sdpo_seen",
    task=Math(train="seen_64", test="aime24", grader="math_reference", deduplicate=False),
    steps=100,
    model=Model(path="Qwen/Qwen3-8B"),
    rollout=Rollout(
        prompts_per_step=64,
        group_size=8,
        temperature=1.0,
        max_prompt_tokens=2048,
        max_completion_tokens=20_480,
        enable_thinking=False,
    ),
    reprompt=Reprompt(
        demonstration="first", max_tokens=22_528, truncation="right", beyond_context=True
    ),
    teacher=Teacher(kind="initial"),
    loss=Loss(distillation=1.0, divergence="top_k", top_k=100, alpha=0.5, scale="reference"),
    optim=Optim(
        lr=1e-5,
        warmup_steps=10,
        warmup_from="zero",
        minibatches=2,
        microbatch=64,
        row_tokens=40_960,
    ),
    eval=Eval(every=10, k=1, examples=0, batch=30, max_completion_tokens=20_480),
    checkpoint=Checkpoint(every=10, keep=10),
)
