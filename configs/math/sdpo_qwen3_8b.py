"""SDPO, the teacher reading a whole correct completion (c = s): Qwen3-8B, thinking, on DAPO-Math.

    python -m sdjax.main --config configs/math/sdpo_qwen3_8b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_qwen3_8b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected: AIME24 falls by 12.1% of its value in 100 steps, and completions shorten
(arXiv:2603.24472, its runs with thinking). The paper's figures in these configs are second-hand:
quoted from notes on it. Its scores are of the second command: 16 answers of up to 38,912 tokens.

The other files of this folder start from this one. Settings are those of the paper's code, where
they differ from the defaults here by name: loss.scale reference, reprompt.truncation right,
warmup_from zero, the math_reference grader, demonstrations taken in order. What differs from it:
a prompt of the data set, repeated 100 times there, is used once an epoch; "first" is the order of
sampling, where that code has an order that favours short completions.
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
    out="runs/math/sdpo_qwen3_8b",
    task=Math(train="dapo_math", test="aime24", grader="math_reference"),
    steps=100,
    model=Model(path="Qwen/Qwen3-8B"),
    rollout=Rollout(
        prompts_per_step=256,
        group_size=8,
        temperature=1.0,
        max_prompt_tokens=2048,
        max_completion_tokens=20_480,
        enable_thinking=True,
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
