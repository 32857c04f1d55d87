#!/usr/bin/env bash
# transformers 4.57.6 reads a Llama config that transformers 5.24.0 saved with another RoPE.
#
# One would expect version 4 to read the same rotary position embedding, or to refuse the file.
# What happens: version 5 writes base and scaling into `rope_parameters` alone. Version 4 reads
# `rope_theta` and `rope_scaling`, finds neither and takes its defaults: base 10000, no scaling.
# It says nothing about it. The model still writes text, but not that of the trained model.
# Instead: before an older reader takes the folder, add `rope_theta` and `rope_scaling` to
# config.json (the last step shows that this works), or read it with version 5.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv new
python3 -m venv old
new/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0
old/bin/pip install --quiet --disable-pip-version-check transformers==4.57.6

new/bin/python -I - 2>/dev/null <<'EOF'
import transformers

print("saved by transformers", transformers.__version__)
rope = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
config = transformers.LlamaConfig(max_position_embeddings=131072, rope_parameters=rope)
config.save_pretrained("saved")
again = transformers.AutoConfig.from_pretrained("saved").rope_parameters
print(f"version 5 reads: {again['rope_type']}, base {again['rope_theta']}")

assert again["rope_theta"] == 500000.0
assert again["rope_type"] == "llama3"
EOF

old/bin/python -I - 2>stderr.txt <<'EOF'
import json
from pathlib import Path

import transformers

file = Path("saved/config.json")
saved = json.loads(file.read_text())
config = transformers.AutoConfig.from_pretrained("saved")
print("read by transformers", transformers.__version__)
print(f"version 4 reads: scaling {config.rope_scaling}, base {config.rope_theta}")

assert {key for key in saved if key.startswith("rope")} == {"rope_parameters"}
assert config.rope_theta == 10000.0, "version 4 no longer takes its default base"
assert config.rope_scaling is None, "version 4 no longer drops the scaling"

scaling = dict(saved["rope_parameters"])
theta = scaling.pop("rope_theta")
file.write_text(json.dumps(saved | {"rope_theta": theta, "rope_scaling": scaling}))
mended = transformers.AutoConfig.from_pretrained("saved")
print(f"with both keys added: {mended.rope_scaling['rope_type']}, base {mended.rope_theta}")

assert mended.rope_theta == 500000.0
assert mended.rope_scaling["rope_type"] == "llama3"
EOF

if grep -qi "rope" stderr.txt; then
  echo "version 4 now tells the user about it:"
  cat stderr.txt
  exit 1
fi
echo "nothing on standard error names RoPE"
