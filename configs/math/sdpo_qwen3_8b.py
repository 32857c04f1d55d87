"""SDPO whose teacher reads a whole correct completion (c = s): Qwen3-8B, thinking, on DAPO-Math.

    python -m sdjax.main --config configs/math/sdpo_qwen3_8b.py
    python -m sdjax.main --config configs/evaluate/math_thinking.py \
        --model.path runs/math/sdpo_qwen3_8b/model

Slice: v5p-128 (64 chips, topology v5p:4x4x4), one row per chip.
Expected (arXiv:2603.24472, runs with thinking): AIME24 falls by 12.1% of its value in 100 steps,
and completions become shorter. The paper's figures in these configs are second-hand, quoted from
notes on it. Its scores come from the second command: 16 answers of up to 38,912 tokens.

The other files of this folder start from this one. Settings are those of the paper's code. Those
that differ from sdjax's defaults are loss.scale reference, reprompt.truncation right, warmup_from
zero, the math_reference grader, and demonstrations in order. Two things differ from that code. A
prompt that its data set repeats 100 times is used once per epoch. "first" is the order of sampling,
while that code's order favours short completions.
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
