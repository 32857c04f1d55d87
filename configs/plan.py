"""Estimates whether a training fits a slice, how long its steps take and what they cost.

    python -m sdjax.main --config configs/plan.py
    python -m sdjax.main --config configs/plan.py --train configs/math/sdpo_qwen3_1_7b.py \
        --topology v6e --search --price 2.7
    python -m sdjax.main --config configs/plan.py --topology h100:8 --change optim.microbatch=8

No command needs a chip or weights. The first compiles the train step, prefill and decode for 64
TPU v5p, in minutes on two cores; `pip install 'sdjax[tpu]'` installs the compiler. The second
searches for the smallest slice of v6e. The third uses arithmetic, as --no_compile does for TPUs.
"""

from sdjax.config import Plan

config = Plan(train=("configs/math/sdpo_qwen3_8b.py",), topology=("v5p:4x4x4",))
