#!/usr/bin/env bash
# Copies the last commit of this repository to all workers, installs it, and mounts the bucket.
#   tpu/setup.sh [--dry-run] [--settings FILE]
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT BUCKET

archive=$(mktemp --suffix .tar.gz)
trap 'rm -f "$archive"' EXIT
run git -C "$ROOT" archive --format tar.gz -o "$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:sdjax.tar.gz" "${WHERE[@]}" --worker all
on_workers "set -e
mkdir -p sdjax bucket && tar -xzf sdjax.tar.gz -C sdjax
python3 -m pip install -q --user uv
cd sdjax && ~/.local/bin/uv venv -q --allow-existing --python 3.12
~/.local/bin/uv pip install -q -e '.[tpu,all]'
if ! command -v gcsfuse >/dev/null; then
  echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
  sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse bubblewrap >/dev/null
fi
mountpoint -q ~/bucket || gcsfuse --implicit-dirs $BUCKET ~/bucket"
