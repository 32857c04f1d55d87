#!/usr/bin/env bash
# reasoning-gym 0.1.25: puzzle24 gives full score to one expression for every question.
#
# The task gives four numbers and asks for an expression of them that is 24.
# One would expect score_answer to check that the expression uses the given numbers.
# What happens: it checks that there are four numbers and that each lies between the smallest and
# largest value of the dataset. It never compares them with those of the question.
# So "6*4*1*1" is right for all questions, and reinforcement learning soon finds such an answer.
# Instead: also compare the sorted numbers of the answer with entry["metadata"]["numbers"].
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25

venv/bin/python -I - <<'EOF'
from importlib.metadata import version

import reasoning_gym

print("reasoning-gym", version("reasoning-gym"))
dataset = reasoning_gym.create_dataset("puzzle24", size=20, seed=0)
answer = "6*4*1*1"
others = [entry for entry in dataset if sorted(entry["metadata"]["numbers"]) != [1, 1, 4, 6]]
scores = [dataset.score_answer(answer, entry) for entry in others]
print(f"numbers of the first question: {others[0]['metadata']['numbers']}")
print(f"score of {answer}: {scores[0]}")
print(f"full scores on questions with other numbers: {scores.count(1.0)} of {len(scores)}")

assert others[0]["metadata"]["numbers"] == [1, 3, 5, 9]
assert scores == [1.0] * 19, "score_answer now compares the numbers"
EOF
