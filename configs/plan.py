"""Whether a training fits a slice, what its steps take and cost: no chip, no weights.

    python -m sdjax.main --config configs/plan.py
    python -m sdjax.main --config configs/plan.py --train configs/math/sdpo_qwen3_1_7b.py \
        --topology v6e --search --price 2.7
    python -m sdjax.main --config configs/plan.py --topology h100:8 --change optim.microbatch=8

The first compiles the train step, prefill and decode for 64 TPU v5p, in minutes on two cores;
`pip install 'sdjax[tpu]'` brings the compiler. The second looks for the smallest slice of v6e. The
third is arithmetic, as all of it is with --no_compile.
"""

from sdjax.config import Plan

config = Plan(train=("configs/math/sdpo_qwen3_8b.py",), topology=("v5p:4x4x4",))
