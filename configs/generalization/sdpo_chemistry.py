"""SDPO on SciKnowEval chemistry: Qwen3-8B without thinking.

    python -m sdjax.main --config configs/generalization/sdpo_chemistry.py
    python -m sdjax.main --config configs/generalization/sdpo_chemistry.py \
        --model.path allenai/Olmo-3-7B-Instruct --rollout.enable_thinking None \
        --out runs/generalization/sdpo_chemistry_olmo3

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one row per chip.
Expected (arXiv:2601.20802, later version, table 3): best avg@16 of 73.2 within 1 h and 80.9 within
5 h of 4 GPUs, from 41.2 at the start. The second command, Olmo: 68.0 and 80.0, from 22.8. Table 8:
completions of 256 tokens, against GRPO's 821.

The other files of this folder start from this one. Settings are those of the paper's code, with 30
epochs. The paper's figures are second-hand, quoted from notes on it.
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
from sdjax.tasks.sciknoweval import SciKnowEval

config = Train(
    out="runs/generalization/sdpo_chemistry",
    task=SciKnowEval(domain="chemistry", grader="choice_reference"),
    steps=30 * (1890 // 32),
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
        demonstration="first", strip_thinking=True, max_tokens=10_240, truncation="right"
    ),
    teacher=Teacher(kind="ema", ema_rate=0.05),
    loss=Loss(distillation=1.0, divergence="top_k", top_k=100, alpha=0.5, scale="reference"),
    optim=Optim(
        lr=1e-5,
        warmup_steps=10,
        warmup_from="zero",
        minibatches=1,
        microbatch=8,
        row_tokens=20_480,
    ),
    eval=Eval(every=5, k=16, examples=0, batch=32, max_completion_tokens=8192),
    checkpoint=Checkpoint(every=50, keep=2),
)
