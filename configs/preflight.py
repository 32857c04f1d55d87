"""Says in minutes what the teacher of a training knows in each context, and which one to take.

    python -m sdjax.main --config configs/preflight.py
    python -m sdjax.main --config configs/preflight.py --train configs/math/sdpo_qwen3_1_7b.py \
        --questions 32 --topology h200:1 --out runs/preflight_math

Nothing is trained. The model answers some training questions, alone and in each context of its
teacher. The second command asks another training's model. docs/how-to/preflight.md explains the
page.
"""

from sdjax.config import Preflight

config = Preflight(train="package:quickstart")
