#!/usr/bin/env bash
# reasoning-gym 0.1.25: game_of_life_halting gives full score to any text.
#
# The task asks whether a game halts, and the answer is True or False.
# One would expect "True" to be wrong where "False" is right.
# What happens: score_answer compares bool(answer) with bool(right answer). Both are texts, and each
# text that is not empty counts as true, "False" too. So all answers but the empty one are right.
# The reward is then the same for every completion, and there is nothing to learn.
# Instead: compare the texts, i.e. answer.strip() == entry["answer"].
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
dataset = reasoning_gym.create_dataset("game_of_life_halting", size=8, seed=0)
right = [entry["answer"] for entry in dataset]
print(f"right answers: {right}")
full = {}
for answer in ("True", "False", "I am not sure", ""):
    full[answer] = sum(dataset.score_answer(answer, entry) == 1.0 for entry in dataset)
    print(f"full scores of {answer!r}: {full[answer]} of {len(right)}")

assert set(right) == {"True", "False"}
assert full == {"True": 8, "False": 8, "I am not sure": 8, "": 0}, "the scores changed"
EOF
