"""The tiny reasoner's base model: finetuning from random weights on traces that a program told.

    python -m sdjax.main --config configs/tiny/traces.py
    XLA_FLAGS="--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0" \
        python -m sdjax.main --config configs/tiny/base.py

On a GPU without these flags sums of the gradient are rounded in another order each time; with them
the same device makes the same bits (configs/tiny/repeat.py shows it in a few updates). On two CPU
cores a few updates: --steps 4 --batch 16 --optim.microbatch 4 --eval.examples 2
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
    # Rows of 512 tokens, of about four conversations each.
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
