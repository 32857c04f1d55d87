"""The step of step_1_7b.py whose target reads two contexts in place of one: what the second costs.

python -m sdjax.main --config configs/bench/contexts_1_7b.py
"""

from dataclasses import replace

from step_1_7b import config as one

from sdjax.config import Target

config = replace(
    one,
    out="runs/bench/contexts_1_7b",
    target=Target(rule="weights", weights={"solution": 1.0, "wrong": -0.5}),
)
