"""Finetunes the tiny reasoner on its own correct answers (arXiv:2603.24472 section 4).

    python -m sdjax.main --config configs/tiny/sft.py
    python -m sdjax.main --config configs/tiny/sft.py --source runs/tiny/study/d_ug.jsonl \
        --out runs/tiny/sft_ug

The study (configs/tiny/study.py) writes both data sets. D_sg holds answers to prompts with a
solution, D_ug answers to the same problems without one. Each training takes about two minutes on
two CPU cores with --model.compute_dtype float32 --eval.examples 50 --eval.k 2
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
