#!/usr/bin/env bash
# reasoning-gym 0.1.25: puzzle24 takes 24.25 for 24.
#
# The task gives four numbers and asks for an expression of them that is 24.
# One would expect score_answer to compare the exact value with 24.
# What happens: it cuts the value to a whole number first. So each value from 24 up to, but not
# including, 25 has full score. Here the expression uses the right numbers and is still wrong.
# Instead: compare the exact value, e.g. with fractions.Fraction.
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
entry = next(one for one in dataset if one["metadata"]["numbers"] == [4, 8, 6, 2])
near = dataset.score_answer("4*6+2/8", entry)
far = dataset.score_answer("4*6+8/2", entry)
print(f"numbers: {entry['metadata']['numbers']}")
print(f"score of 4*6+2/8 = {4 * 6 + 2 / 8}: {near}")
print(f"score of 4*6+8/2 = {4 * 6 + 8 / 2}: {far}")

assert near == 1.0, "24.25 is no longer taken for 24"
assert far == 0.01
EOF
