#!/usr/bin/env bash
# Runs docs/how-to/first-hour.md as a newcomer would: in a new environment in a folder outside the
# clone, from a wheel. A local server stands in for the hub. Prints the minutes of each command.
# Needs the extra `test` for the stand-in, and a network for pip.
set -euo pipefail
clone=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'kill "${hub:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

python3 -m pip wheel --quiet --no-deps --wheel-dir "$work" "$clone"
PYTHONPATH="$clone/tests/support" python3 -m pushing "$work/hub" >"$work/hub.url" &
hub=$!
until [[ -s $work/hub.url ]]; do sleep 0.1; done
HF_ENDPOINT=$(cat "$work/hub.url") && export HF_ENDPOINT
export HF_TOKEN=hf_a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1 HF_HUB_DISABLE_XET=1
cd "$work"
unset PYTHONPATH VIRTUAL_ENV

step() {
  echo "+ $1"
  local start=$EPOCHREALTIME
  eval "$1"
  awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "= %.1f minutes\n", (b - a) / 60 }'
}

step 'python3 -m venv .venv && . .venv/bin/activate'
step 'pip install sdjax-0.1.0-py3-none-any.whl'
step 'sdjax init mine'
# The files that the page tells its reader to write.
PYTHONPATH="$clone/tests/support" python -c "
import sys, pathlib, snippets
snippets.write(pathlib.Path('$clone/docs/how-to/first-hour.md'), pathlib.Path())"
step 'sdjax --config mine.py --task.held_out 2 --lora.rank 8 --checkpoint.every 2'
step 'sdjax --config package:report --runs runs/mine --out report.html'
step 'pip install peft torch'
step 'python use_adapter.py'
step 'sdjax --config package:export --run runs/mine --out exported --push_to me/mine'

cmp exported/model.safetensors hub/model.safetensors
cmp exported/README.md hub/README.md
test -s report.html && test -s runs/mine/model_adapter/adapter_model.safetensors
du -sm "$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"/* | sort -rn | head -12
echo "the first hour is done"
