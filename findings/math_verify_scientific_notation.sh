#!/usr/bin/env bash
# math-verify 0.9.0: parse drops the exponent of a number such as 1e3, so "2.5e-7" equals "2.5".
#
# Python, JSON and models write small and large numbers as 2.5e-07, so one would expect parse to
# read them, or to find nothing. What happens: it reads the digits before the e alone. A wrong
# answer is rewarded (1e3 for 1), and a right one is not (1e3 for 1000).
# A power of ten in LaTeX, "$1\times 10^{3}$", is read right.
# Instead: write such numbers out, or as a power of ten in LaTeX, before parse.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2

venv/bin/python -I - <<'EOF'
import logging
from importlib.metadata import version

from math_verify import parse, verify

logging.disable(logging.WARNING)
print("math-verify", version("math-verify"))
for answer, gold, equal in [
    ("1e3", "1", True),
    ("1e3", "1000", False),
    ("2.5e-07", "2.5", True),
    ("2.5e-07", "0.00000025", False),
    (r"$1\times 10^{3}$", "1000", True),
]:
    parsed = parse(answer)
    found = verify(parse(gold), parsed)
    print(f"answer {answer:17} is read as {parsed}; equals {gold}: {found}")
    assert found is equal, "math-verify changed"
EOF
