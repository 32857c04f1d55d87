"""Test-time self-distillation: Qwen3-8B learns from the errors of its attempts at one problem.

    python -m sdjax.main --config configs/feedback/test_time_livecodebench.py --task.problems 120 \
        --out runs/feedback/test_time_120

Slice: v5p-16 (8 chips, topology v5p:2x2x2), one copy of the model split over all chips.
Expected: 53.2% of the very hard problems solved within 2,750 attempts, best-of-k 41.5%; of the hard
ones 78%, best-of-k 72.3% (arXiv:2601.20802, discovery@k). One problem is a run: attempts up to the
first success are the lines of rollouts.jsonl before it.

Of the paper's settings (its table 12) two are not here: a run goes on to its last step also after
a success, and advantages are not clipped at 5, which its published code does not do either.
Problems go by their row in the source; the paper numbers those of its own file. Attempts are graded
by half of a problem's tests, the answers at the end by all.
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
