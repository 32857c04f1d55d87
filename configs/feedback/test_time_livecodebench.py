"""Test-time self-distillation: Qwen3-8B learns from the errors of its attempts at one problem.

    python -m sdjax.main --config configs/feedback/test_time_livecodebench.py --task.problems 120 \
        --out runs/feedback/test_time_120

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one copy of the model split over all chips.
Expected (arXiv:2601.20802, discovery@k): 53.2% of the very hard problems are solved within 2,750
attempts, against 41.5% by best-of-k. Of the hard problems 78%, against 72.3%. A run learns from one
problem; the lines of rollouts.jsonl before the first success are its failed attempts.

Two of the paper's settings (table 12) differ. A run continues to its last step after a success.
Advantages are not clipped at 5, as in the paper's published code. Problems are numbered by their
row in the source; the paper numbers them by its own file. Attempts are graded by half of a
problem's tests, the final answers by all.
"""

from dataclasses import replace

from sdpo_livecodebench import config as sdpo

from sdjax.config import Checkpoint, Eval, Mesh

config = replace(
    sdpo,
    out="runs/feedback/test_time",
    task=replace(sdpo.task, problems=("100",)),
    steps=172,  # x 16 attempts = 2,752
    rollout=replace(sdpo.rollout, prompts_per_step=1, group_size=16),
    optim=replace(sdpo.optim, minibatches=1, microbatch=1),
    mesh=Mesh(fsdp=1, tensor=-1),
    eval=Eval(every=0, k=4, max_completion_tokens=8192),
    checkpoint=Checkpoint(every=0),
)
