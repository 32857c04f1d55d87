"""Finetunes the tiny reasoner's base model from random weights on traces that a program wrote.

    python -m sdjax.main --config configs/tiny/traces.py
    XLA_FLAGS="--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0" \
        python -m sdjax.main --config configs/tiny/base.py

Without these flags a GPU rounds the sums of a gradient in a different order in each run. With them
the same device produces the same bits; configs/tiny/repeat.py shows it in 60 updates. For two CPU
cores: --steps 4 --batch 16 --optim.microbatch 4 --eval.examples 2
"""

from sdpo import config as miniature

from sdjax.config import SFT, Checkpoint, Eval, Model, Optim

config = SFT(
    out="runs/tiny/base",
    source="runs/tiny/traces/traces.jsonl",
    model=Model(path="runs/tiny/traces/model", init_seed=0, remat="none", attention="plain"),
    task=miniature.task,
    out_of_domain=miniature.out_of_domain,
    batch=512,
    steps=3000,
    max_tokens=512,
    max_prompt_tokens=64,
    log_every=50,
    # A row of 512 tokens holds about four conversations.
    optim=Optim(
        lr=2e-3,
        warmup_steps=200,
        decay=(1200, 3000),
        beta2=0.98,
        weight_decay=0.05,
        row_tokens=512,
        microbatch=48,
    ),
    eval=Eval(every=0, k=4, examples=200, temperature=1.0, top_p=1.0, max_completion_tokens=256),
    checkpoint=Checkpoint(every=0),
)
