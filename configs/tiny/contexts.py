"""SDPO on the tiny reasoner with contexts that take the unrelated demonstration apart.

    python -m sdjax.main --config configs/tiny/contexts.py
    python -m sdjax.main --config configs/tiny/contexts.py --target.context unrelated_failed

keep_trying asks the teacher to go on and shows it nothing. unrelated_failed shows it a failed
completion of another question, where "unrelated" shows a right one. configs/tiny/league.sh trains
both, the first also from a base model that was taught what the instruction means.
"""

from dataclasses import replace

from sdpo import config as base

from sdjax.config import Demonstration, Instruction, Target

config = replace(
    base,
    out="runs/tiny/contexts",
    contexts={
        "keep_trying": Instruction(instruction="Keep trying.", max_tokens=352),
        "unrelated_failed": Demonstration(of="another_question", sibling="failure", max_tokens=352),
    },
    target=Target(context="keep_trying"),
)
