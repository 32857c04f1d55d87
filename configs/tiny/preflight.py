"""Says which context of the teacher the tiny reasoner should learn from, before its trainings.

    python -m sdjax.main --config configs/tiny/preflight.py

It measures the contexts that arms of configs/tiny/league.sh train in; docs/remedies.md has both.
For two CPU cores: --questions 32 --change rollout.group_size=4 model.compute_dtype=float32
"""

from sdjax.config import Demonstration, Preflight

config = Preflight(
    train="package:tiny/sdpo",
    out="runs/tiny/preflight",
    questions=200,
    contexts={
        "answer": Demonstration(strip_thinking=True, max_tokens=352),
        "unrelated_answer": Demonstration(
            of="another_question", strip_thinking=True, max_tokens=352
        ),
    },
    only=("solution", "answer", "unrelated", "unrelated_answer", "wrong", "plain"),
)
