#!/usr/bin/env bash
# math-verify 0.9.0: parse() drops an unknown that is also the letter of a unit.
#
# One would expect `2t` and `2` to be different answers, because t is an unknown here.
# What happens: the default settings remove units, and the letters c, d, g, h, l, m, o, s and t at
# the end of an answer after a number are taken for units. So `2t` is read as 2 and `x+2t` as x+2.
# It happens to the right answer too, so a wrong answer gets the reward. Other letters, e.g. n and
# x, stay.
# Instead: parse with units=False where answers hold unknowns (the second column below).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2

venv/bin/python -I - <<'EOF'
from importlib.metadata import version

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

print("math-verify", version("math-verify"))
KEEP = [LatexExtractionConfig(normalization_config=NormalizationConfig(units=False))]

seen = {}
print("right   answer  default  units=False")
for right, answer in (("2t", "2"), ("6m", "6"), ("x+2t", "x+2"), ("2n", "2"), ("2x", "2")):
    pair = (f"${right}$", f"${answer}$")
    default = verify(*(parse(text) for text in pair))
    kept = verify(*(parse(text, KEEP) for text in pair))
    seen[right] = (default, kept)
    print(f"{right:<8}{answer:<8}{default!s:<9}{kept}")

dropped = [
    letter for letter in "abcdefghijklmnopqrstuvwxyz" if parse(f"$6{letter}$") == parse("$6$")
]
print(f"letters dropped after a number: {' '.join(dropped)}")

assert seen["2t"] == seen["6m"] == seen["x+2t"] == (True, False), "unknowns are no longer dropped"
assert seen["2n"] == seen["2x"] == (False, False)
assert dropped == list("cdghlmost"), "other letters are dropped now"
EOF
