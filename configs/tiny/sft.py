"""SFT of the tiny reasoner on its own right answers (arXiv:2603.24472 section 4), D_sg and D_ug.

    python -m sdjax.main --config configs/tiny/sft.py
    python -m sdjax.main --config configs/tiny/sft.py --source runs/tiny/study/d_ug.jsonl \
        --out runs/tiny/sft_ug

The study (configs/tiny/study.py) writes both: D_sg are the answers given with a solution in sight,
D_ug those given without, to the same problems. Each takes about two minutes on two CPU cores with
--model.compute_dtype float32 --eval.examples 50 --eval.k 2
"""

from sdpo import config as miniature

from sdjax.config import SFT, Checkpoint, Optim

config = SFT(
    out="runs/tiny/sft_sg",
    source="runs/tiny/study/d_sg.jsonl",
    max_tokens=512,
    max_prompt_tokens=64,
    batch=25,
    epochs=8,
    log_every=4,
    model=miniature.model,
    task=miniature.task,
    out_of_domain=miniature.out_of_domain,
    optim=Optim(lr=1e-4, warmup_steps=4, row_tokens=512, microbatch=4),
    eval=miniature.eval,
    checkpoint=Checkpoint(every=0),
)
