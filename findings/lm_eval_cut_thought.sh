#!/usr/bin/env bash
# lm_eval 0.4.13: a thought that never ends is graded as if it were the answer.
#
# For models that think, think_end_token ("</think>") makes lm_eval grade only what follows it.
# One would expect a completion whose thought the length limit cut off to have no answer.
# What happens: without the token the whole text stays. A rule that looks for the last number, such
# as gsm8k's "flexible-extract", then takes the last number that the model was thinking of. A
# shorter limit can so raise a score, and an aborted guess counts as solved.
# Instead: give such completions an empty answer, or report how many were cut beside the score.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check lm_eval==0.4.13

venv/bin/python -I - <<'EOF'
import re
from importlib.metadata import version
from pathlib import Path

import lm_eval
import yaml
from lm_eval.filters.extraction import RegexFilter
from lm_eval.models.utils import postprocess_generated_text

task = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
filters = yaml.safe_load(re.sub(r"!function \S+", "x", task.read_text()))["filter_list"]
[rule] = [f for each in filters if each["name"] == "flexible-extract"
          for f in each["filter"] if f["function"] == "regex"]
extract = RegexFilter(rule["regex_pattern"], group_select=rule["group_select"])


def graded(completion):
    text = postprocess_generated_text(completion, ["Question:"], "</think>")
    return text, extract.apply([[text]], [{}])[0][0].rstrip(".")


ended = graded("16 - 3 - 4 = 9, and 9 * 2 is 18.</think>It is 18.")
cut = graded("16 - 3 - 4 = 9. Suppose it is 18; but perhaps they mean 18")
print("lm_eval", version("lm_eval"))
print("a thought that ends:", ended)
print("a thought that is cut:", cut)

assert ended == ("It is 18.", "18"), "a thought that ends is read in another way"
assert cut[0].startswith("16 - 3"), "a cut thought is no longer kept"
assert cut[1] == "18", "the last number of a cut thought is no longer its answer"
EOF
